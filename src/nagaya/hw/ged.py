"""The Generic Event Device (ACPI 6.5, 5.6.9): the host's events that a guest's ACPI hears of.

One register of 32 bits: what happened since it was read last. Reading clears it and the interrupt line, which
is level-triggered: an event that comes while a guest masks it waits. The bytecode that reads is in `acpi.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag

from nagaya.hw.wires import Line


class Event(IntFlag):
    """Bits of the register."""

    POWER_BUTTON = 1 << 0
    GENERATION = 1 << 1


# What the device that an event concerns is notified with (5.6.6)
EVENTS: Mapping[Event, int] = {Event.POWER_BUTTON: 0x80, Event.GENERATION: 0x80}


class Ged:
    """The event register. A reset clears it."""

    SIZE = 4

    def __init__(self, line: Line) -> None:
        """`line` is that of `layout.GED_IRQ`."""
        self._line = line
        self._pending = Event(0)

    @property
    def pending(self) -> Event:
        """What the guest has not read yet."""
        return self._pending

    def press_power_button(self) -> None:
        """Ask the guest to shut down; what it does then is its own affair."""
        self._raise(Event.POWER_BUTTON)

    def announce_generation(self) -> None:
        """Tell the guest that its generation id is another one now."""
        self._raise(Event.GENERATION)

    def reset(self) -> None:
        """Forget what the guest has not heard of."""
        self._pending = Event(0)
        self._line.set(False)

    def read(self, offset: int, size: int) -> int:
        """Events, cleared by this read. Only a read of the whole register sees them."""
        if (offset, size) != (0, self.SIZE):
            return 0
        pending = self._pending
        self.reset()
        return int(pending)

    def write(self, offset: int, size: int, value: int) -> None:
        """The register is read-only."""

    def _raise(self, event: Event) -> None:
        self._pending |= event
        self._line.set(True)
