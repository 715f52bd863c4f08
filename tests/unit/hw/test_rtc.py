"""The clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.hw.rtc import CENTURY, ControlB, Rtc

NOON = datetime(2031, 5, 18, 13, 45, 59, 250_000, UTC)  # a Sunday


class Clock:
    def __init__(self, moment: datetime = NOON) -> None:
        self.time = moment.timestamp()
        self.rtc = Rtc(lambda: self.time)

    def get(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def set(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def all(self) -> list[int]:
        return [self.get(index) for index in (CENTURY, 9, 8, 7, 6, 4, 2, 0)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_tells_the_hosts_time_in_decimal_digits(clock: Clock) -> None:
    assert clock.all() == [0x20, 0x31, 0x05, 0x18, 1, 0x13, 0x45, 0x59]
    clock.time += 1
    assert clock.all() == [0x20, 0x31, 0x05, 0x18, 1, 0x13, 0x46, 0x00]


def test_it_tells_the_time_as_the_guest_wants_it(clock: Clock) -> None:
    clock.set(0x0B, ControlB.of(BINARY=1, HOURS_24=1))
    assert clock.all() == [20, 31, 5, 18, 1, 13, 45, 59]
    clock.set(0x0B, 0)
    assert clock.get(4) == 0x81
    clock.time -= 3600
    assert clock.get(4) == 0x92
    clock.time -= 12 * 3600
    assert clock.get(4) == 0x12


def test_it_runs_on_from_what_a_guest_sets(clock: Clock) -> None:
    clock.set(0x0B, ControlB.of(SET=1, HOURS_24=1))
    for index, value in ((CENTURY, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)):
        clock.set(index, value)
    clock.time += 100
    assert clock.get(0) == 0x58
    clock.set(0x0B, ControlB.of(HOURS_24=1))
    clock.time += 2
    assert clock.all() == [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]


def test_a_date_that_does_not_exist_changes_nothing(clock: Clock) -> None:
    clock.set(8, 0x13)
    clock.set(7, 0xFF)
    assert clock.all() == [0x20, 0x31, 0x05, 0x18, 1, 0x13, 0x45, 0x59]


def test_an_update_is_announced_just_before_it(clock: Clock) -> None:
    assert clock.get(0x0A) == 0x26
    clock.time += 0.7499
    assert clock.get(0x0A) == 0xA6


def test_it_has_no_interrupts_and_a_good_battery(clock: Clock) -> None:
    clock.set(0x0B, 0x7F)
    assert clock.get(0x0B) == 0x07
    clock.set(0x0C, 0xFF)
    clock.set(0x0D, 0)
    assert (clock.get(0x0C), clock.get(0x0D)) == (0, 0x80)
    clock.set(0x0E, 0x5A)
    assert clock.get(0x8E) == 0x5A


@given(
    st.floats(0, 7e10),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), st.integers(1, 2), st.integers(0, 65535)), max_size=60
    ),
)
def test_no_guest_makes_it_raise(start: float, accesses: list[tuple[bool, int, int, int]]) -> None:
    clock = Clock()
    clock.time = start
    for write, offset, wish, value in accesses:
        size = min(wish, 2 - offset)
        if write:
            clock.rtc.write(offset, size, value & ((1 << (8 * size)) - 1))
        else:
            assert 0 <= clock.rtc.read(offset, size) < 1 << (8 * size)
        clock.time += 0.3
