"""The console log stays under its limit and survives a full disk."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nagaya.plane.caplog import CappedLog, LogWriter


def total(path: Path) -> int:
    older = path.with_name(path.name + ".1")
    return path.stat().st_size + (older.stat().st_size if older.exists() else 0)


def test_it_keeps_the_newest_output_under_the_limit(directory: Path) -> None:
    path = directory / "log"
    log = CappedLog(str(path), 8192)
    for number in range(2000):
        log.append(b"line %d\n" % number)
        assert total(path) <= 8192
    log.close()
    text = path.with_name("log.1").read_bytes() + path.read_bytes()
    assert text.endswith(b"line 1998\nline 1999\n")
    assert len(text) > 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_output_over_the_limit_leaves_its_end(directory: Path) -> None:
    path = directory / "log"
    log = CappedLog(str(path), 8192)
    log.append(b"x" * 100_000 + b"end")
    log.close()
    assert total(path) <= 8192
    assert path.read_bytes().endswith(b"end")


def test_it_goes_on_where_an_earlier_run_ended(directory: Path) -> None:
    path = directory / "log"
    for text in (b"first ", b"second"):
        log = CappedLog(str(path), 8192)
        log.append(text)
        log.close()
    assert path.read_bytes() == b"first second"


def test_a_log_that_somebody_removed_comes_back_with_the_next_half(directory: Path) -> None:
    path = directory / "log"
    log = CappedLog(str(path), 8192)
    log.append(b"a")
    path.unlink()
    log.append(b"b" * 10_000)
    log.close()
    assert path.exists()


def test_it_does_not_follow_a_link(directory: Path) -> None:
    (directory / "log").symlink_to(directory / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        CappedLog(str(directory / "log"), 8192)


@pytest.mark.root
def test_on_a_full_disk_the_oldest_goes_and_the_rest_is_counted(directory: Path) -> None:
    mount = directory / "m"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount], check=True)
    try:
        path = mount / "log"
        log = CappedLog(str(path), 128 * 1024)
        for number in range(40):
            log.append(b"%-4095d\n" % number)
        assert path.read_bytes().split()[-1] == b"39"
        assert total(path) <= 64 * 1024
        assert log.dropped == 0
        log.close()
        path.unlink()
        (mount / "ballast").write_bytes(b"x" * 64 * 1024)
        log = CappedLog(str(path), 128 * 1024)
        log.append(b"lost")
        assert log.dropped == 4
        (mount / "ballast").unlink()
        log.append(b"kept")
        log.close()
        assert path.read_bytes() == b"kept"
    finally:
        subprocess.run(["umount", mount], check=True)


class _StuckLog(CappedLog):
    def append(self, output: bytes) -> None:
        raise OSError("the disk is on fire")


def test_a_failing_log_is_counted_and_does_not_stop_the_writer(directory: Path) -> None:
    async def scenario(pool: ThreadPoolExecutor) -> int:
        writer = LogWriter(_StuckLog(str(directory / "log"), 8192), pool)
        writer.write(b"12345")
        await asyncio.sleep(0.05)
        writer.write(b"678")
        await writer.close()
        return writer.dropped

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(scenario(pool)) == 8


def test_output_that_waits_for_the_disk_is_bounded(directory: Path) -> None:
    async def scenario(pool: ThreadPoolExecutor) -> int:
        writer = LogWriter(CappedLog(str(directory / "log"), 2**30), pool)
        for _ in range(64):  # none is written before this returns to the loop
            writer.write(bytes(65536))
        await writer.close()
        return writer.dropped

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(scenario(pool)) == 3 * 2**20
    assert (directory / "log").stat().st_size == 2**20
