"""The host runs out of space under running machines: their writes wait, nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nagaya.cli.daemon import end
from nagaya.paths import Paths
from nagaya.sdk import Client, Machine, ensure_daemon

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

MIB = 2**20
HOST_MIB = 48
WRITTEN_MIB = 20
LEFT_MIB = 6
# The same bytes whenever it is called, no block like another.
STREAM = f"seq 1 9999999 | head -c {WRITTEN_MIB * MIB}"
WRITE = f"({STREAM} | dd of=/dev/vdb bs=64k conv=fsync 2> /run/dd; echo $? > /run/outcome) > /dev/null 2>&1 &"
WANT = f"{STREAM} > /run/want"
COMPARE = f"{WANT}; echo 3 > /proc/sys/vm/drop_caches; head -c {WRITTEN_MIB * MIB} /dev/vdb | cmp - /run/want"
KEPT = f"{STREAM} | tail -c 1000000"
OUTCOME = "cat /run/outcome 2> /dev/null; true"


@pytest.fixture
def small(paths: Paths) -> Iterator[Path]:
    """Where machines keep their disks: a real ext4 of its own. Holds a file that leaves little space."""
    machines, image = paths.state / "machines", paths.state / "small.ext4"
    machines.mkdir(mode=0o711)
    with image.open("wb") as file:
        file.truncate(HOST_MIB * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, machines], check=True)
    yield machines
    subprocess.run(["umount", machines], check=True)


@pytest.fixture
def client(small: Path, client: Client) -> Client:
    """Its machines are on the small file system, which is there first and goes last."""
    return client


def _until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(0.05)


def _box(client: Client, name: str) -> Machine:
    spec = {"name": name, "memory": "128MiB", "disks": [{"image": "busybox"}, {"size": "32MiB"}]}
    return client.machines.create(spec, start=True).wait("agent", 60)


def _shell(machine: Machine, command: str) -> bytes:
    done = machine.exec(["sh", "-c", command])
    assert done.exit_code == 0, (command, done)
    return done.stdout


def _fill(directory: Path, left: int) -> Path:
    filler = directory / "filler"
    status = os.statvfs(directory)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_bsize - left)
    return filler


def _starve(client: Client, machine: Machine, small: Path) -> Path:
    """Have the guest write more than there is room for, and wait until that is known; what to remove."""
    filler = _fill(small, LEFT_MIB * MIB)
    _shell(machine, WRITE)
    _until(lambda: machine.refresh().info.cause != "")
    assert machine.info.cause == "no space left on the host: disk1 waits for some"
    assert machine.state == "io-error"
    return filler


def test_writes_wait_and_go_on_when_there_is_space(client: Client, small: Path) -> None:
    box, neighbour = _box(client, "box"), _box(client, "neighbour")
    _shell(neighbour, "head -c 1048576 /dev/urandom > /root/file; sync")
    filler = _starve(client, box, small)
    # The guest's CPU runs on, and the neighbour on the same full file system writes what it has room for.
    assert _shell(box, OUTCOME) == b""
    _shell(neighbour, "head -c 1048576 /dev/zero | dd of=/root/file conv=notrunc,fsync 2>/dev/null")
    assert neighbour.refresh().info.cause == ""
    filler.unlink()
    _until(lambda: box.refresh().info.cause == "")
    assert box.state == "running"
    told = [entry.event for entry in box.journal()]
    assert told[-2:] == ["io-error", "io-error over"]
    _until(lambda: _shell(box, OUTCOME) == b"0\n")
    _shell(box, COMPARE)
    _shell(box, "! dmesg | grep -i 'error'")
    _shell(neighbour, "head -c 1048576 /dev/zero | cmp - /root/file")
    box.stop(30)
    _check_overlay(client, box)


def test_a_machine_that_is_killed_while_it_waits_keeps_what_was_acknowledged(
    client: Client, small: Path
) -> None:
    box = _box(client, "box")
    _shell(box, f"{KEPT} | dd of=/dev/vdb seek=28 bs=1M conv=fsync 2> /dev/null")
    filler = _starve(client, box, small)
    box.kill()
    _check_overlay(client, box)
    filler.unlink()
    box.start().wait("agent", 60)
    _shell(box, f"{KEPT} > /run/want; dd if=/dev/vdb skip=28 bs=1M | head -c 1000000 | cmp - /run/want")
    assert box.refresh().info.cause == ""


def test_the_next_daemon_says_it_too(client: Client, small: Path) -> None:
    box = _box(client, "box")
    filler = _starve(client, box, small)
    end(client.host().daemon_pid)
    ensure_daemon(client.paths)
    _until(lambda: box.refresh().info.cause != "")
    filler.unlink()
    _until(lambda: _shell(box, OUTCOME) == b"0\n")
    _shell(box, COMPARE)


def _check_overlay(client: Client, machine: Machine) -> None:
    """Clusters that are leaked cost space, not data."""
    if shutil.which("qemu-img"):
        overlay = client.paths.machine(machine.id).disk(0)
        checked = subprocess.run(
            ["qemu-img", "check", "-f", "qcow2", overlay], capture_output=True, check=False
        )
        assert checked.returncode in (0, 3), checked.stdout.decode()
