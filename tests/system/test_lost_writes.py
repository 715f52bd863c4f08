"""The host loses writes: who asked for them to be durable is told, and never told the opposite afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.testing.disks import Asker, device, forgetful_device, serve, worker_pid

pytestmark = [pytest.mark.root]

MIB = 2**20
GOOD, BAD = 0, 1
KILLS = 24
MAPPINGS = 4096  # crates/plane/src/page.rs


@pytest.fixture
def forgetful(directory: Path) -> Iterator[Path]:
    with forgetful_device(directory, size=640 * MIB, kept=2 * MIB) as path:
        yield path


def _fill(guest: Asker, start: int, mib: int) -> None:
    """Write more than there is room for; the page cache takes it."""
    for at in range(start, start + mib):
        assert guest.ask(f"write {at * 2048} {MIB} {1 + at % 250}") == GOOD


def test_linux_itself_forgets_a_lost_write_after_one_fsync(forgetful: Path) -> None:
    """What the rest of this file is about; if this fails, the kernel has become better."""
    fd = os.open(forgetful, os.O_RDWR)
    try:
        os.pwrite(fd, bytes(range(256)) * 4 * 4096, 0)
        with pytest.raises(OSError, match=r"No space left|Input/output"):
            os.fsync(fd)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_no_flush_succeeds_after_one_has_failed(
    plane: _core.Plane, directory: Path, forgetful: Path, vub: Path
) -> None:
    path = directory / "disk.sock"
    serve(plane, path, {"raw": forgetful})
    with contextlib.closing(Asker(vub, path)) as guest:
        assert guest.ask("flush") == GOOD
        _fill(guest, 0, 4)
        assert [guest.ask("flush") for _ in range(3)] == [BAD] * 3
        assert guest.ask("write 0 4096 7") == GOOD
        assert guest.ask("flush") == BAD
        os.kill(worker_pid(plane), signal.SIGKILL)
        assert guest.ask("read 0 4096") == GOOD
        assert guest.ask("flush") == BAD
    assert device(plane)["flush_error"] != 0
    assert [event for event in plane.take_events() if "DEVICE_FLUSH_FAILED" in event]
    plane.device_del("disk0")
    serve(plane, path, {"raw": forgetful})
    with contextlib.closing(Asker(vub, path)) as guest:
        # Opened anew, what was lost is lost, and what is written where there is room is kept.
        assert (guest.ask("write 0 4096 9"), guest.ask("flush")) == (GOOD, GOOD)


@pytest.fixture
def overlay(directory: Path, forgetful: Path) -> Iterator[Path]:
    # Without a journal: with one, the file system would remember the error by itself.
    options = ["-O", "^has_journal", "-E", "nodiscard"]
    subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, forgetful], check=True)
    (directory / "fs").mkdir()
    subprocess.run(["mount", forgetful, directory / "fs"], check=True)
    _core.qcow2_create(str(directory / "fs" / "top.qcow2"), 512 * MIB, "", "")
    yield directory / "fs" / "top.qcow2"
    subprocess.run(["umount", directory / "fs"], check=True)


def test_an_overlay_is_no_exception(plane: _core.Plane, directory: Path, overlay: Path, vub: Path) -> None:
    path = directory / "disk.sock"
    serve(plane, path, {"qcow2": overlay})
    with contextlib.closing(Asker(vub, path)) as guest:
        _fill(guest, 0, 16)
        assert [guest.ask("flush") for _ in range(3)] == [BAD] * 3
    plane.device_del("disk0")


def test_nor_are_flushes_that_an_overlay_makes_by_itself(
    plane: _core.Plane, directory: Path, overlay: Path, vub: Path
) -> None:
    path = directory / "disk.sock"
    serve(plane, path, {"qcow2": overlay})
    with contextlib.closing(Asker(vub, path)) as guest:
        # More first writes than the log of mappings holds: the tables are written, after a sync, unasked.
        answers = [guest.ask(f"write {128 * cluster} 4096 1") for cluster in range(MAPPINGS + 64)]
        assert answers[:MAPPINGS] == [GOOD] * MAPPINGS
        assert device(plane)["flush_error"] != 0
        assert [guest.ask("flush") for _ in range(2)] == [BAD] * 2
    plane.device_del("disk0")


def test_a_worker_that_takes_the_error_to_its_grave_does_not_hide_it(
    plane: _core.Plane, directory: Path, forgetful: Path, vub: Path
) -> None:
    path = directory / "disk.sock"
    chance = random.Random(11)
    by_witness = 0
    by_witness = 0
    for turn in range(KILLS):
        serve(plane, path, {"raw": forgetful})
        with contextlib.closing(Asker(vub, path)) as guest:
            _fill(guest, 4 + 4 * turn, 4)
            guest.begin("flush")
            time.sleep(chance.uniform(0, 0.006))
            os.kill(worker_pid(plane), signal.SIGKILL)
            assert guest.answer() == BAD, f"kill {turn}"
            assert guest.ask("flush") == BAD, f"kill {turn}"
        plane.device_del("disk0")
        told = [json.loads(event) for event in plane.take_events()]
        by_witness += sum(
            one["event"] == "DEVICE_FLUSH_FAILED" and "errno" not in one["data"] for one in told
        )
    print(f"{by_witness} of {KILLS} flushes were judged after their worker's death")
