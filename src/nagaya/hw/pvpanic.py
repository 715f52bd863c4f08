"""pvpanic: a guest's kernel says that it panicked (QEMU, docs/specs/pvpanic.rst). Attach its `SIZE` bytes."""

from __future__ import annotations

from typing import Final

from nagaya.hw.wires import Board, Request

SIZE: Final = 1
PANICKED: Final = 0x01
CRASH_LOADED: Final = 0x02


class Pvpanic:
    """Reads as the events that it knows; a write is an event."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, offset: int, size: int) -> int:
        """The events that are understood."""
        return PANICKED | CRASH_LOADED

    def write(self, offset: int, size: int, value: int) -> None:
        """Report an event. A kernel that goes on in a crash kernel has not ended."""
        if value & PANICKED:
            self._board.request(Request.PANICKED, "the guest's kernel panicked")
        elif value & CRASH_LOADED:
            self._board.request(
                Request.CRASH_LOADED, "the guest's kernel panicked and goes on in its crash kernel"
            )
