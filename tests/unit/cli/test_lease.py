"""`nagaya lease` against a daemon on fakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nagaya.paths import Paths
from nagaya.sdk import Client

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def image(daemon_paths: Paths) -> Iterator[str]:
    path = daemon_paths.cache / "shared.img"
    path.write_bytes(bytes(2**20))
    yield str(path)
    path.unlink()


@pytest.fixture
def pair(invoke: Invoke, daemon_paths: Paths, image: str) -> Iterator[tuple[str, str]]:
    """`a`, which runs and has the image as its disk1, and `b`, which would."""
    with Client(daemon_paths) as client:
        for name in ("a", "b"):
            disks = [{"image": "busybox"}, {"path": image}]
            client.machines.create({"name": name, "memory": "64MiB", "disks": disks})
        client.machines.named("a").start()
    yield "a", "b"
    with Client(daemon_paths) as client:
        for lease in client.leases.list(image):
            if lease.state in ("remote", "expired"):
                client.leases.release(lease.id)


def test_list_and_show(invoke: Invoke, pair: tuple[str, str], image: str) -> None:
    table = invoke("lease", "list").out.splitlines()
    headings = ["ID", "RESOURCE", "ACCESS", "STATE", "HOLDER", "HOST", "SINCE", "EXPIRES", "WAITING"]
    assert table[0].split() == headings
    assert {line.split("  ")[1].strip() for line in table[1:]} >= {image, "a/disk0", "image busybox"}
    (lease,) = invoke("lease", "list", image, "--format", "json").json
    assert (lease["machine"], lease["disk"], lease["access"], lease["state"]) == (
        *("a", "disk1"),
        "writer",
        "held",
    )
    assert invoke("lease", "list", image, "-q").out == f"{lease['id']}\n"
    refused = invoke("start", "b")
    assert refused.status == 4
    assert f"b cannot write {image} (disk1): a on host" in refused.err
    shown = yaml.safe_load(invoke("lease", "show", image).out)
    assert shown["leases"][0]["machine"] == "a"
    assert " refused " in shown["history"][-1]
    assert invoke("lease", "show", "nothing/disk0").status == 3


def test_wait_ends_when_the_holder_does(
    invoke: Invoke, pair: tuple[str, str], image: str, daemon_paths: Paths
) -> None:
    late = invoke("lease", "wait", "b", "--timeout", "0.05")
    assert late.status == 9
    assert "b waited long enough: b cannot write" in late.err

    def stop_when_waited_for() -> None:
        with Client(daemon_paths) as client:
            while not client.leases.list(image)[0].waiting:
                time.sleep(0.01)
            time.sleep(0.3)  # the command line says what it waits for
            client.machines.named("a").stop(5)

    helper = threading.Thread(target=stop_when_waited_for)
    helper.start()
    done = invoke("lease", "wait", "b", "--start")
    helper.join()
    assert (done.status, done.out) == (0, "b runs\n")
    assert "number 1: b cannot write" in done.err
    assert invoke("lease", "wait", "b").status == 4, "it runs"


def test_transfer_and_break(invoke: Invoke, pair: tuple[str, str], image: str) -> None:
    assert "--stop asks" in invoke("lease", "transfer", image, "b").err
    assert invoke("lease", "transfer", "a/disk1", "b", "--detach", "--start").out == "b runs\n"
    refused = invoke("lease", "break", image)
    assert refused.status == 2
    assert "has 2 leases: a (" in refused.err
    (lease,) = [
        one for one in invoke("lease", "list", image, "--format", "json").json if one["machine"] == "b"
    ]
    assert invoke("lease", "break", lease["id"]).status == 4
    done = invoke("lease", "break", lease["id"], "--force")
    assert done.out == f"b has {image} no more: b was killed and its disks closed\n"
    assert invoke("lease", "break", image).out == f"a has {image} no more\n"
    assert invoke("lease", "break", image).status == 3


def test_a_holder_on_another_host(invoke: Invoke, image: str) -> None:
    claimed = yaml.safe_load(
        invoke("lease", "claim", image, "--holder", "m", "--host", "far", "--ttl", "600").out
    )
    assert (claimed["state"], claimed["machine"], claimed["host"]) == ("remote", "m", "far")
    assert invoke("lease", "break", image, "--force").status == 4
    assert invoke("lease", "renew", claimed["id"], "--ttl", "9").status == 0
    assert "in 9 s" in invoke("lease", "list", image).out or "in 8 s" in invoke("lease", "list", image).out
    assert invoke("lease", "release", claimed["id"]).out == f"{claimed['id']} is released\n"
    assert invoke("lease", "list", image, "-q").out == ""


def test_a_relative_path_is_one_of_the_caller(
    invoke: Invoke, pair: tuple[str, str], image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(image).parent)
    assert invoke("lease", "list", f"./{Path(image).name}", "-q").out != ""
