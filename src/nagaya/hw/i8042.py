"""The keyboard controller's command port, for the one thing it is still asked: to reset the machine.

Attach its `SIZE` bytes at 0x64. There is no controller behind it. The status says that a byte waits, always,
so Linux gives up after reading 16 of them (drivers/input/serio/i8042.c, i8042_flush) and not after half a
second without an answer; and that the last command has been taken, so a reboot does not wait (kb_wait).
"""

from __future__ import annotations

from typing import Final

from nagaya.hw.wires import Board, Request

SIZE: Final = 1
STATUS_OUTPUT_FULL: Final = 0x01
PULSE_RESET: Final = 0xFE  # pulse line 0, which is wired to the CPU's reset


class I8042:
    """Port 0x64: status when read, command when written."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, offset: int, size: int) -> int:
        """The status."""
        return STATUS_OUTPUT_FULL

    def write(self, offset: int, size: int, value: int) -> None:
        """A command; all but the reset are ignored."""
        if value & 0xFF == PULSE_RESET:
            self._board.request(Request.RESET, "the guest asked the keyboard controller for a reset")
