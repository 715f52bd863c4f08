"""Events reach the guest once, and none is lost while it looks away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nagaya.hw.ged import Event, Ged


class FakeLine:
    """A line that remembers its level."""

    level: bool = False

    def set(self, level: bool) -> None:
        self.level = level


def test_a_press_is_read_once() -> None:
    line = FakeLine()
    ged = Ged(line)
    assert ged.read(0, 4) == 0
    ged.press_power_button()
    ged.press_power_button()
    assert (line.level, ged.read(0, 4)) == (True, Event.POWER_BUTTON)
    assert (line.level, ged.read(0, 4)) == (False, 0)


def test_events_add_up_until_they_are_read() -> None:
    ged = Ged(FakeLine())
    ged.press_power_button()
    ged.announce_generation()
    assert ged.read(0, 4) == Event.POWER_BUTTON | Event.GENERATION


def test_a_reset_forgets() -> None:
    line = FakeLine()
    ged = Ged(line)
    ged.press_power_button()
    ged.reset()
    assert (line.level, ged.read(0, 4)) == (False, 0)


@given(st.integers(0, 3), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
def test_odd_accesses_neither_see_nor_lose_an_event(offset: int, size: int, value: int) -> None:
    ged = Ged(FakeLine())
    ged.press_power_button()
    ged.write(offset, size, value)
    if (offset, size) != (0, 4):
        assert ged.read(offset, size) == 0
    assert ged.read(0, 4) == Event.POWER_BUTTON
