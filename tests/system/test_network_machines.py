"""Machines on the default network of a namespace: addresses, names, a forward, a killed worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from nagaya.cli.daemon import end
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.netns import Namespace

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
PAGE = "a page of two"
SERVE = f"mkdir /tmp/w && echo {PAGE} > /tmp/w/index.html && httpd -p 80 -h /tmp/w"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """The namespace that plays the host."""
    monkeypatch.delenv("NAGAYA_DEFAULT_NETWORK")
    with Namespace() as place:
        yield place


@pytest.fixture
def inside(host: Namespace, paths: Paths, uml_kernel: Kernel, busybox_image: Image) -> Iterator[Client]:
    """A client of a daemon that runs there."""
    with host.entered():
        ensure_daemon(paths)
        with Client(paths) as client:
            yield client
            for machine in client.machines.list():
                machine.delete(force=True)
            about = client.host()
        for pid in (about.daemon_pid, about.plane_pid, about.zygote_pid):
            if pid is not None:
                end(pid)


def create(client: Client, name: str, **more: object) -> Machine:
    spec = {"name": name, "memory": "96MiB", "disks": [{"image": "busybox"}], **more}
    machine = client.machines.create(spec, start=True)
    machine.wait("agent", 60)
    return machine


def until_it_answers(machine: Machine, command: str) -> str:
    """The command's output once it succeeds: DHCP takes a moment, and so does a worker that was killed."""
    deadline = time.monotonic() + 30
    while True:
        done = machine.exec(["sh", "-c", command])
        if done.exit_code == 0:
            return done.stdout.decode()
        assert time.monotonic() < deadline, done
        time.sleep(0.2)


@pytest.mark.anyio
async def test_machines_of_the_default_network(inside: Client, host: Namespace, paths: Paths) -> None:
    one = create(inside, "one")
    two = create(inside, "two", ports=["127.0.0.1:8080:80"])
    assert two.exec(["sh", "-c", SERVE]).exit_code == 0
    for family in "46":
        until_it_answers(one, f"ping -{family} -c 1 -W 1 two.nagaya.internal")
    assert until_it_answers(one, "wget -q -O - http://two/").strip() == PAGE
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == PAGE
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        worker = next(each for each in await plane.query_workers() if each.name == "net-default")
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        for family in "46":
            until_it_answers(one, f"ping -{family} -c 1 -W 1 two.nagaya.internal")
    two.delete(force=True)
    with pytest.raises(Exception, match="exit status 7"):
        host.run("curl -s -m 5 http://127.0.0.1:8080/")
    one.delete(force=True)
    assert "ngy" not in host.run("ip link; nft list tables")
