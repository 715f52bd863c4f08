"""Faults on purpose, from the SDK down to what a guest sees; they outlive the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from nagaya.cli.daemon import end
from nagaya.sdk import Client, Machine, ensure_daemon

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

WRITE = "dd if=/dev/zero of=/dev/vdb bs=4k count={count} oflag=direct conv=notrunc 2>&1"


@pytest.fixture
def box(client: Client) -> Machine:
    disks = [{"image": "busybox"}, {"size": "16MiB"}]
    box = client.machines.create({"name": "box", "memory": "64MiB", "disks": disks}, start=True)
    return box.wait("agent", 60)


def _write(box: Machine, count: int = 4) -> tuple[int, float]:
    """Exit status and seconds of `count` writes one after the other."""
    start = time.monotonic()
    done = box.exec(["sh", "-c", WRITE.format(count=count)])
    return done.exit_code, time.monotonic() - start


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen within 60 s"
        time.sleep(0.02)


def test_a_guest_feels_them_and_is_rid_of_them(client: Client, box: Machine) -> None:
    assert _write(box)[0] == 0
    box.set_faults(1, latency_us=200_000, operations=["write"])
    status, seconds = _write(box)
    assert status == 0 and seconds >= 4 * 0.2
    assert [(one.disk, one.latency_us, one.faulted >= 4) for one in box.faults()] == [(1, 200_000, True)]
    end(client.host().daemon_pid)
    ensure_daemon(client.paths)
    _until(lambda: box.refresh().info.faults != [])
    assert (box.info.cause, box.state) == ("faults on purpose on disk1", "running")
    box.set_faults(1, error_rate=1.0, operations=["write"])
    assert _write(box)[0] == 1
    box.set_faults(1)
    assert _write(box)[0] == 0
    assert (box.faults(), box.refresh().info.cause) == ([], "")


def test_a_disk_that_is_full_on_purpose_puts_the_machine_into_io_error(box: Machine) -> None:
    box.set_faults(1, full=True)
    box.exec(["sh", "-c", f"({WRITE.format(count=1)}; echo $? > /run/done) > /dev/null 2>&1 &"])
    _until(lambda: box.refresh().state == "io-error")
    assert box.exec(["cat", "/run/done"]).exit_code == 1
    box.set_faults(1)
    _until(lambda: box.refresh().state == "running")
    _until(lambda: box.exec(["cat", "/run/done"]).stdout == b"0\n")


def test_a_machine_with_a_stuck_disk_can_be_stopped(box: Machine) -> None:
    box.set_faults(1, stuck=True)
    box.exec(["sh", "-c", f"({WRITE.format(count=1)}) > /dev/null 2>&1 &"])
    assert box.stop(2).state == "stopped"
    assert box.start().wait("agent", 60).faults() == []
    assert _write(box)[0] == 0
