"""What resets the machine or switches it off: port 0xcf9, and ACPI's sleep registers."""

from __future__ import annotations

from typing import Final

from nagaya.abi import acpi
from nagaya.hw.wires import Board, Request

SIZE: Final = 1
RESET_CPU: Final = 0x04
_KEPT: Final = 0x0A  # which reset, a matter of hardware: remembered

SLEEP_SIZE: Final = 2
_SLEEP_TYPE: Final = 7 << acpi.SLEEP_TYPE_SHIFT


class ResetControl:
    """Port 0xcf9 of a PCI chipset: bit 2, when it rises, resets (Intel ICH9, 13.7.5).

    With PCI it lies among the ports of `ConfigPorts`, which passes it on; without, attach `SIZE` bytes.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """What was written, but for the bit that resets."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Ask for a reset if bit 2 is set."""
        self._value = value & _KEPT
        if value & RESET_CPU:
            self._board.request(Request.RESET, "the guest asked for a reset at port 0xcf9")


class SleepControl:
    """Sleep control and status of hardware-reduced ACPI (ACPI 6.5, 4.8.3.7). Attach `SLEEP_SIZE` bytes."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self, offset: int, size: int) -> int:
        """Zero: it does not sleep, and so it never wakes."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Switch off, if that is what the guest asks for. There is no other sleep."""
        off = acpi.SLEEP_TYPE_S5 << acpi.SLEEP_TYPE_SHIFT
        if offset == 0 and value & acpi.SLEEP_ENABLE and value & _SLEEP_TYPE == off:
            self._board.request(Request.POWEROFF, "the guest switched itself off")
