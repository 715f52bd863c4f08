"""Real machines with BusyBox, made by a client, for tests of networks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from nagaya.cli.daemon import end
from nagaya.paths import Paths
from nagaya.sdk import Client, Machine

_PATIENCE_S = 60


@contextlib.contextmanager
def client_of(paths: Paths, again: Callable[[], object] = lambda: None) -> Iterator[Client]:
    """A client of the daemon that runs; afterwards the machines are gone, and so are its processes.

    `again` starts a daemon if the test has killed it.
    """
    with Client(paths) as client:
        try:
            yield client
        finally:
            again()
            for machine in client.machines.list():
                machine.delete(force=True)
            about = client.host()
            for pid in (about.daemon_pid, about.plane_pid, about.zygote_pid):
                if pid is not None:
                    end(pid)


def create(client: Client, name: str, **more: object) -> Machine:
    """A machine that runs and whose agent answers; `more` is of its spec."""
    spec = {"name": name, "memory": "96MiB", "disks": [{"image": "busybox"}], **more}
    return client.machines.create(spec, start=True).wait("agent", 60)


def until(true: Callable[[], object]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {_PATIENCE_S} s")
        time.sleep(0.1)


def until_it_answers(machine: Machine, command: str) -> str:
    """The command's output once it succeeds: DHCP takes a moment, and so does a worker that was killed."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        done = machine.exec(["sh", "-c", command])
        if done.exit_code == 0:
            return done.stdout.decode()
        if time.monotonic() > deadline:
            raise AssertionError(f"{machine.name}: {command} ends with {done} for {_PATIENCE_S} s")
        time.sleep(0.2)
