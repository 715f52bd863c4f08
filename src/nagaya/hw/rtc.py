"""The clock and its battery-backed memory (Motorola MC146818A). Attach its `SIZE` bytes at 0x70.

The time is worked out when it is read, from the host's clock in UTC and what the guest has set. The clock has
no interrupts: bits that would enable one stay zero, so that a guest sees it. It needs no timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from nagaya.abi.registers import Bits, Register, bit

SIZE: Final = 2
CENTURY: Final = 0x32  # where ACPI's FADT says the century is

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_CLOCK: Final = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, CENTURY)
_A, _B, _C, _D = 0x0A, 0x0B, 0x0C, 0x0D
_MEMORY: Final = 128
_UPDATE_SECONDS: Final = 244e-6  # so long before a tick "update in progress" is set (table 6)


class ControlA(Register):
    """Register A: divider and rate, and whether the time is about to change."""

    RATE = Bits(0, 3)
    DIVIDER = Bits(4, 6)
    UPDATING = bit(7)


class ControlB(Register):
    """Register B: how the time is written, and whether it stands still to be set."""

    DAYLIGHT = bit(0)
    HOURS_24 = bit(1)
    BINARY = bit(2)
    SQUARE_WAVE = bit(3)
    INTERRUPTS = Bits(4, 6)
    SET = bit(7)


class Rtc:
    """Port 0 takes an index into 128 bytes, port 1 is the byte there."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """`now` is the host's time, seconds since 1970."""
        self._now = now
        self._index = 0
        self._memory = bytearray(_MEMORY)
        self._memory[_A] = ControlA.of(DIVIDER=2, RATE=6)  # 32,768 Hz
        self._memory[_B] = ControlB.of(HOURS_24=1)
        self._memory[_D] = 0x80  # the battery is good
        self._offset = timedelta()  # of the guest's time from the host's

    def read(self, offset: int, size: int) -> int:
        """The byte at the index. The index itself cannot be read."""
        return self._load(self._index) if offset == 1 else (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """The index, and with a wider access also the byte there."""
        if offset == 0:
            self._index = value & (_MEMORY - 1)  # bit 7 is the NMI's mask
        if offset + size == SIZE:
            self._store(self._index, value >> (8 * (size - 1)) & 0xFF)

    @property
    def _control(self) -> ControlB:
        return ControlB(self._memory[_B])

    def _load(self, index: int) -> int:
        if index in _CLOCK and not self._control.SET:
            self._show(self._time())
        elif index == _A:
            rest = 1 - self._now() % 1
            return ControlA(self._memory[_A]).replace(
                UPDATING=rest <= _UPDATE_SECONDS and not self._control.SET
            )
        return self._memory[index]

    def _store(self, index: int, value: int) -> None:
        if index in _CLOCK:
            if not self._control.SET:
                self._show(self._time())
            self._memory[index] = value
            if not self._control.SET:
                self._set()
        elif index == _A:
            self._memory[_A] = value & ~ControlA.UPDATING.mask
        elif index == _B:
            self._control_b(ControlB(value & ~ControlB.INTERRUPTS.mask & ~ControlB.SQUARE_WAVE.mask))
        elif index not in (_C, _D):
            self._memory[index] = value

    def _control_b(self, value: ControlB) -> None:
        """While SET is set the clock's bytes stand still, and count from what they then hold."""
        before = self._control
        if value.SET and not before.SET:
            self._show(self._time())
        self._memory[_B] = value
        if before.SET and not value.SET:
            self._set()

    def _time(self) -> datetime:
        host = datetime.fromtimestamp(self._now(), UTC)
        try:
            return host + self._offset
        except OverflowError:  # set to the end of the calendar, years ago
            self._offset = timedelta()
            return host

    def _show(self, moment: datetime) -> None:
        """Write the time into the bytes, as register B asks for."""
        control = self._control
        hour = moment.hour if control.HOURS_24 else (moment.hour + 11) % 12 + 1
        for index, value in (
            (_SECONDS, moment.second),
            (_MINUTES, moment.minute),
            (_HOURS, hour),
            (_WEEKDAY, moment.isoweekday() % 7 + 1),  # Sunday is 1
            (_DAY, moment.day),
            (_MONTH, moment.month),
            (_YEAR, moment.year % 100),
            (CENTURY, moment.year // 100),
        ):
            self._memory[index] = value if control.BINARY else value // 10 << 4 | value % 10
        if not control.HOURS_24 and moment.hour >= 12:
            self._memory[_HOURS] |= 0x80

    def _set(self) -> None:
        """Count on from what the bytes hold. A date that does not exist changes nothing."""
        hour = self._memory[_HOURS]
        hours = self._number(hour & 0x7F if not self._control.HOURS_24 else hour)
        if not self._control.HOURS_24:
            hours = hours % 12 + (12 if hour & 0x80 else 0)
        host = datetime.fromtimestamp(self._now(), UTC)
        try:
            moment = datetime(
                100 * self._number(self._memory[CENTURY]) + self._number(self._memory[_YEAR]),
                self._number(self._memory[_MONTH]),
                self._number(self._memory[_DAY]),
                hours,
                self._number(self._memory[_MINUTES]),
                self._number(self._memory[_SECONDS]),
                host.microsecond,
                UTC,
            )
        except ValueError:
            return
        self._offset = moment - host

    def _number(self, value: int) -> int:
        return value if self._control.BINARY else 10 * (value >> 4) + (value & 0xF)
