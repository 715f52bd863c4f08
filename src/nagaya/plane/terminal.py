"""The console as a pseudo terminal, for programs that want a tty (screen, minicom, expect)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
import tty
from collections.abc import Callable

_READ_BYTES = 4096  # what a person or a paste types at a time


class Terminal:
    """A raw pty. `path` names its slave, 0600. Output that nobody reads is dropped, the oldest first.

    The slave is kept open here: the master would report a hang-up whenever no program has it open, and the
    event loop would spin on that. Raises `OSError` when the host has no pty left.
    """

    def __init__(self, on_input: Callable[[bytes], None]) -> None:
        self._on_input = on_input
        self._master, self._slave = os.openpty()
        try:
            tty.setraw(self._slave)
            os.fchmod(self._slave, 0o600)
            os.set_blocking(self._master, False)
            self.path = os.ttyname(self._slave)
        except BaseException:
            self._close_fds()
            raise
        self._reading = False
        self.set_reading(True)

    def show(self, chunk: bytes) -> None:
        """Write `chunk`, dropping what does not fit."""
        try:
            os.write(self._master, chunk)
        except BlockingIOError:
            termios.tcflush(self._slave, termios.TCIFLUSH)  # unread output is the slave's input
            with contextlib.suppress(BlockingIOError):  # the next chunk finds room
                os.write(self._master, chunk)

    def set_reading(self, reading: bool) -> None:
        """Read on, or leave what was typed in the pty."""
        if reading == self._reading or self._master < 0:
            return
        self._reading = reading
        loop = asyncio.get_running_loop()
        if reading:
            loop.add_reader(self._master, self._typed)
        else:
            loop.remove_reader(self._master)

    def close(self) -> None:
        """Hang up on whoever has the slave open. Idempotent."""
        self.set_reading(False)
        self._close_fds()

    def _typed(self) -> None:
        try:
            typed = os.read(self._master, _READ_BYTES)
        except BlockingIOError:
            return
        self._on_input(typed)

    def _close_fds(self) -> None:
        for fd in (self._master, self._slave):
            if fd >= 0:
                os.close(fd)
        self._master = self._slave = -1
