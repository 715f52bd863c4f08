"""The console's pty never blocks the plane."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from nagaya.plane.terminal import Terminal

pytestmark = pytest.mark.anyio


async def test_it_passes_bytes_both_ways_untouched() -> None:
    typed = bytearray()
    terminal = Terminal(typed.extend)
    try:
        assert stat.S_IMODE(Path(terminal.path).stat().st_mode) == 0o600  # noqa: ASYNC240
        user = os.open(terminal.path, os.O_RDWR | os.O_NOCTTY)
        terminal.show(b"login: \x03\x04\r\n")
        assert os.read(user, 100) == b"login: \x03\x04\r\n"
        os.write(user, b"root\r\x1c")
        await asyncio.sleep(0.05)
        assert typed == b"root\r\x1c"
        os.close(user)
    finally:
        terminal.close()


async def test_output_that_nobody_reads_gives_way_to_newer_output() -> None:
    terminal = Terminal(lambda typed: None)
    try:
        for number in range(10_000):
            terminal.show(b"%09d\n" % number)
        with Path(terminal.path).open("rb", buffering=0) as user:  # noqa: ASYNC230
            newest = user.read(65536).split()
        # The last may be cut. A pty holds 4 KiB, and 64 KiB more (7,000 lines) on the way to it, moved when
        # the host finds time; a terminal that kept the oldest would show line 400.
        assert int(newest[-2]) > 2500
    finally:
        terminal.close()


async def test_closing_hangs_up_on_the_user() -> None:
    terminal = Terminal(lambda typed: None)
    user = os.open(terminal.path, os.O_RDWR | os.O_NOCTTY)
    terminal.close()
    terminal.close()
    assert os.read(user, 1) == b""
    os.close(user)
