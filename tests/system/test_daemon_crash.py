"""The daemon is killed at every step of a command; the next one finishes or undoes it.

Fakes below, so that what is tested is the order of the daemon's own steps; processes and files are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from nagaya.daemon.failpoint import Step
from nagaya.errors import NagayaError, NotFoundError
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon
from nagaya.testing.scratch import make_directory

PROGRAM = ("-m", "nagaya.testing.daemon")
# In no machine's life: test_leases.py has the step of a waiter, test_kvm_machines.py those of live NICs.
ELSEWHERE = ("home:", "wait:", "connect:", "disconnect:")
SPEC = {"name": "web", "nics": [], "memory": "64MiB", "disks": [{"size": "1MiB"}]}


@pytest.fixture
def own_paths() -> Iterator[Paths]:
    top = make_directory()
    yield Paths(top / "r", top / "s", top / "c")
    shutil.rmtree(top)


def processes_of(machine_id: str) -> list[int]:
    marker = f"nagaya-fake-machine-{machine_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    pytest.fail(f"the daemon {pid} was not killed at the failpoint")


def live_through(step: str, paths: Paths) -> None:
    """A machine's whole life with a daemon that dies at `step`, and as much of it again with the next."""
    with Client(paths) as client:
        for act in ("create", "start", "set", "attach", "detach", "stop", "start", "delete"):
            try:
                if act == "create":
                    client.machines.create(SPEC)
                elif act == "attach":
                    client.disks.create("data", "1MiB")
                    client.disks.attach("web", "data")
                elif act == "detach":
                    client.disks.detach("web", "data")
                elif act == "set":
                    client.machines.get("web").set({"disk.weight": 400, "cpu.weight": 200})
                elif act == "delete":
                    client.machines.get("web").delete(force=True)
                else:
                    getattr(client.machines.get("web"), act)()
            except NagayaError:
                return
    pytest.fail(f"nothing reached {step}")


@pytest.mark.parametrize("step", [step for step in get_args(Step) if not step.startswith(ELSEWHERE)])
def test_whatever_step_it_is_killed_at_the_next_daemon_converges(
    step: str, own_paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAGAYA_FAILPOINT", step)
    first = ensure_daemon(own_paths, program=PROGRAM)
    live_through(step, own_paths)
    wait_for_end(first)
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    second = ensure_daemon(own_paths, program=PROGRAM)
    try:
        assert second != first
        with Client(own_paths) as client:
            check(client, own_paths, step)
    finally:
        os.kill(second, signal.SIGTERM)
        wait_for_end(second)


def check(client: Client, paths: Paths, step: str) -> None:
    """The machine is as it was before the command or after it, and everything around it agrees."""
    if step.startswith("delete:"):
        with pytest.raises(NotFoundError):
            client.machines.get("web")
        assert directories(paths) == []
        assert devices(paths) == set()
        assert client.leases.list() == []
        return
    machine = client.machines.get("web")
    if step.startswith("stop:"):
        machine.wait("stopped", 20)
    plugs = step.startswith(("attach:", "detach:"))
    expected = "running" if plugs or step.startswith(("start:", "set:")) else "stopped"
    if step.startswith("set:"):
        assert (machine.info.spec["disk"]["weight"], weight(paths, machine.id)) == (400, 400)
    assert (machine.refresh().state, machine.info.cause) == (expected, "")
    names = {"disk0", "console", "rng", "balloon0"} if expected == "running" else set()
    wanted = {f"{machine.id}/{name}" for name in names}
    deadline = time.monotonic() + 60
    while plugs and devices(paths) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)  # guests are asked to let go of a disk after the daemon is there
    assert devices(paths) == wanted
    assert processes_of(machine.id) == ([machine.info.pid] if expected == "running" else [])
    held = [(lease.resource, lease.state) for lease in client.leases.list()]
    assert held == ([("web/disk0", "held")] if expected == "running" else [])
    assert directories(paths) in ([machine.id], [] if step == "create:recorded" else [machine.id])
    if plugs:
        assert len(machine.info.spec["disks"]) == 1
        client.disks.attach("web", "data")
        client.disks.detach("web", "data")
        client.disks.delete("data")
    if expected == "stopped":
        machine.start()
    assert [file.name for file in paths.machine(machine.id).state.glob("disk*")] == ["disk0.qcow2"]
    machine.stop()
    machine.delete()
    assert directories(paths) == []
    assert rows(paths) == []


def devices(paths: Paths) -> set[str]:
    file = paths.run / "fake-plane.json"
    return set(json.loads(file.read_text())) if file.exists() else set()


def weight(paths: Paths, node: str) -> int:
    """What the plane has been told."""
    nodes = json.loads((paths.run / "fake-disk-shares.json").read_text())
    return next(int(one["weight"]) for one in nodes if one["id"] == node)


def directories(paths: Paths) -> list[str]:
    return sorted(one.name for one in (paths.state / "machines").glob("*"))


def rows(paths: Paths) -> list[tuple[object, ...]]:
    db = sqlite3.connect(f"file:{paths.database}?mode=ro", uri=True)
    try:
        return db.execute("SELECT id FROM machines").fetchall()
    finally:
        db.close()
