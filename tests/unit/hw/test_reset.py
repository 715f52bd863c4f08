"""Ports that end a machine's run: the keyboard controller, 0xcf9, ACPI's sleep control, pvpanic."""

from __future__ import annotations

import pytest

from nagaya.hw.bus import Registers
from nagaya.hw.i8042 import I8042
from nagaya.hw.pvpanic import Pvpanic
from nagaya.hw.reset import ResetControl, SleepControl
from nagaya.hw.wires import Request
from nagaya.testing.wires import FakeBoard


def _asked(board: FakeBoard) -> list[Request]:
    return [what for what, cause in board.requests if cause]


@pytest.mark.parametrize(
    ("kind", "value", "request_"),
    [
        (I8042, 0xFE, Request.RESET),
        (ResetControl, 0x04, Request.RESET),
        (ResetControl, 0x0E, Request.RESET),
        (SleepControl, 0x34, Request.POWEROFF),
        (Pvpanic, 0x01, Request.PANICKED),
        (Pvpanic, 0x02, Request.CRASH_LOADED),
        (Pvpanic, 0x03, Request.PANICKED),
    ],
)
def test_one_value_asks(
    kind: type[I8042 | ResetControl | SleepControl | Pvpanic],
    value: int,
    request_: Request,
    board: FakeBoard,
) -> None:
    device: Registers = kind(board)
    device.write(0, 1, value)
    assert _asked(board) == [request_]


@pytest.mark.parametrize(
    ("kind", "silent"),
    [
        (I8042, set(range(256)) - {0xFE}),
        (ResetControl, {value for value in range(256) if not value & 4}),
        (SleepControl, {value for value in range(256) if value & 0x3C != 0x34}),
        (Pvpanic, {value for value in range(256) if not value & 3}),
    ],
)
def test_other_values_do_not(
    kind: type[I8042 | ResetControl | SleepControl | Pvpanic], silent: set[int], board: FakeBoard
) -> None:
    device: Registers = kind(board)
    for value in silent:
        device.write(0, 1, value)
        assert 0 <= device.read(0, 1) <= 0xFF
    assert board.requests == []


def test_what_guests_read(board: FakeBoard) -> None:
    assert Pvpanic(board).read(0, 1) == 3
    # Linux: a byte waits in the output buffer for ever, so there is no controller; none in the input buffer,
    # so it does not wait before the reset.
    assert I8042(board).read(0, 1) == 1
    reset = ResetControl(board)
    reset.write(0, 1, 0x0E)
    assert reset.read(0, 1) == 0x0A
    sleep = SleepControl(board)
    sleep.write(1, 1, 0xFF)
    assert (sleep.read(0, 1), sleep.read(1, 1), len(board.requests)) == (0, 0, 1)
