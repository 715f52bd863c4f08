"""The daemon over the real plane, zygote and kernel: kill -9, adoption, exec, console, guests that end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from nagaya.errors import ConflictError, NotFoundError, UnavailableError
from nagaya.sdk import Client, Machine, ensure_daemon

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]


@pytest.fixture
def box(client: Client) -> Machine:
    """A running BusyBox machine whose agent answers."""
    spec = {"name": "box", "memory": "64MiB", "disks": [{"image": "busybox"}]}
    return client.machines.create(spec, start=True).wait("agent", 60)


def end(pid: int, number: signal.Signals) -> None:
    """Signal a process and wait until it is gone."""
    os.kill(pid, number)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} did not end")


def test_exec_gives_the_commands_own_output_and_status(box: Machine) -> None:
    assert box.exec(["hostname"]).stdout == b"box\n"
    done = box.exec(["sh", "-c", "cat; echo err >&2; exit 7"], stdin=b"\x00in\xff")
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"\x00in\xff", b"err\n")
    with pytest.raises(NotFoundError):
        box.exec(["no-such-program"])


def test_a_daemon_that_is_killed_loses_no_machine(client: Client, box: Machine) -> None:
    box.exec(["sh", "-c", "echo kept > /root/file"])
    before = box.refresh().info
    end(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    after = box.refresh().info
    assert (after.state, after.pid, after.restarts) == ("running", before.pid, 0)
    assert box.exec(["cat", "/root/file"]).stdout == b"kept\n"
    assert box.stop(20).state == "stopped"


def test_what_the_guest_wrote_is_there_after_a_restart(box: Machine) -> None:
    box.exec(["sh", "-c", "echo kept > /root/file; sync"])
    first = box.info.pid
    box.restart()
    assert box.info.pid != first
    assert box.wait("agent", 60).exec(["cat", "/root/file"]).stdout == b"kept\n"


def test_a_guest_that_reboots_comes_back_and_one_that_powers_off_stays_off(box: Machine) -> None:
    first = box.info.pid
    box.exec(["sh", "-c", "(sleep 0.2; reboot -f) > /dev/null 2>&1 &"])
    deadline = time.monotonic() + 60
    while box.refresh().info.pid in (first, None) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert box.info.restarts == 1
    box.wait("agent", 60).exec(["sh", "-c", "(sleep 0.2; poweroff -f) > /dev/null 2>&1 &"])
    assert box.wait("stopped", 30).info.cause == ""


def test_a_paused_machine_is_paused_for_the_next_daemon_too(client: Client, box: Machine) -> None:
    box.pause()
    end(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    assert box.refresh().state == "paused"
    assert box.resume().exec(["true"]).exit_code == 0


def test_the_console_is_typed_into_and_logged(box: Machine) -> None:
    with box.console() as console:
        console.send(b"echo a$((1 + 1))b\n")
        seen = b""
        while b"a2b" not in seen:
            seen += console.recv(timeout=20)
    deadline = time.monotonic() + 60
    while b"a2b" not in box.logs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"a2b" in box.logs(tail=20)
    assert b"nagaya: init started" in box.logs()


def test_a_plane_that_is_killed_fails_the_machine_and_the_next_start_works(
    client: Client, box: Machine
) -> None:
    plane = client.host().plane_pid
    assert plane is not None
    end(plane, signal.SIGKILL)
    assert box.wait("stopped", 30).info.cause == "the plane ended, and the machine's devices with it"
    assert box.start().wait("agent", 60).exec(["true"]).exit_code == 0


def test_a_machine_killed_from_outside_is_told(box: Machine) -> None:
    assert box.info.pid is not None
    os.kill(box.info.pid, signal.SIGKILL)
    assert box.wait("stopped", 20).state == "failed"
    assert box.info.cause != ""


def test_an_image_in_use_is_kept_and_a_dead_daemon_is_told(client: Client, box: Machine) -> None:
    with pytest.raises(ConflictError, match="busybox"):
        client.images.remove("busybox")
    end(client.host().daemon_pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="no daemon answers"):
        box.refresh()
