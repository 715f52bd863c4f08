"""The engine's log keeps the beginning and the end, and never grows beyond its limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nagaya.engines.enginelog import EngineLog


def _write(log: EngineLog, text: bytes) -> None:
    while text:
        text = text[os.write(log.write_fd, text[:4096]) :]
        log.drain()


def test_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    log = EngineLog(path, 1000)
    _write(log, b"hello\n")
    assert path.read_bytes() == b"hello\n"
    assert path.stat().st_mode & 0o777 == 0o600
    log.close_writer()
    assert log.drain() is False
    log.close()
    log.close()


def test_the_end_is_kept_when_the_middle_is_not(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    log = EngineLog(path, 1000)
    _write(log, b"first\n" + b"x" * 100_000 + b"\nKernel panic - not syncing: why\n")
    assert log.flooded
    assert path.stat().st_size == 1000
    log.close()
    text = path.read_bytes()
    assert text.startswith(b"first\n")
    assert text.endswith(b"Kernel panic - not syncing: why\n")
    assert b"bytes left out]" in text
    assert len(text) < 1000 + 16 * 1024 + 100


def test_the_last_run_is_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    for text in (b"one", b"two", b"three"):
        log = EngineLog(path, 100)
        _write(log, text)
        log.close()
    assert path.read_bytes() == b"three"
    assert path.with_name("engine.log.1").read_bytes() == b"two"


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    target = tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target)
    log = EngineLog(path, 100)
    _write(log, b"x")
    log.close()
    assert target.read_text() == "precious"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", 100)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    os.close(full)
    _write(log, b"x" * 10_000)
    log.close()
