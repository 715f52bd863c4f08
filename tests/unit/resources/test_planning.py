from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.demand import Hour, Quantiles
from nagaya.resources.planning import (
    HOURS,
    MOST,
    Load,
    Room,
    added,
    constant,
    days_of,
    how_many,
    packed,
    with_more,
)


def at(hour: int, value: float) -> tuple[float, ...]:
    """A day of one busy hour."""
    return tuple(value if one == hour else 0.0 for one in range(HOURS))


DAY = st.builds(
    lambda hour, most, least: added([at(hour, most), constant(least)]),
    st.integers(0, 23),
    st.floats(0, 1000),
    st.floats(0, 100),
)


def test_a_day_has_the_greatest_of_several_days_and_no_idle_hour_unseen() -> None:
    def hour(number: int, cpu: int) -> Hour:
        return Hour(number, 360, {"cpu": Quantiles(0, 0, cpu, cpu)})

    day = days_of([hour(24 * 7 + 3, 500), hour(24 * 8 + 3, 700), hour(24 * 8 + 4, 100)])["cpu"]
    assert (day[3], day[4], day[5]) == (700, 100, 700)
    assert days_of([]) == {}


@given(DAY, DAY, st.floats(1, 1e5))
def test_so_many_fit_and_not_one_more(base: tuple[float, ...], each: tuple[float, ...], limit: float) -> None:
    room = Room("cpu", limit)
    count = how_many(room, base, each)
    if count < 0:
        assert max(base) > limit
        return
    assert max(with_more(base, each, count)) <= limit * (1 + 1e-6)
    if count < MOST:
        assert max(with_more(base, each, count + 1)) >= limit * (1 - 1e-6)


def test_machines_whose_peaks_do_not_meet_share_a_host() -> None:
    day = Load("day", {"cpu": at(12, 2.0), "memory": constant(4)})
    night = Load("night", {"cpu": at(3, 2.0), "memory": constant(4)})
    noon = Load("noon", {"cpu": at(12, 1.5), "memory": constant(1)})
    huge = Load("huge", {"memory": constant(100)})
    groups, large = packed([day, night, noon, huge], [Room("cpu", 2.0), Room("memory", 10)])
    assert [group.names for group in groups] == [("day", "night"), ("noon",)]
    assert (groups[0].peaks, groups[0].hours["cpu"]) == ({"cpu": 2.0, "memory": 8.0}, 3)
    assert large == ["huge"]


@given(st.lists(st.tuples(DAY, DAY), max_size=8))
def test_every_machine_is_in_one_group_and_no_group_is_too_large(
    days: list[tuple[tuple[float, ...], tuple[float, ...]]],
) -> None:
    loads = [Load(f"m{number}", {"cpu": cpu, "iops": iops}) for number, (cpu, iops) in enumerate(days)]
    rooms = [Room("cpu", 1500), Room("iops", 900)]
    groups, large = packed(loads, rooms)
    names = [name for group in groups for name in group.names] + large
    assert sorted(names) == sorted(load.name for load in loads)
    for group in groups:
        for room in rooms:
            total = added(load.day(room.key) for load in loads if load.name in group.names)
            assert max(total) <= room.limit
            assert group.peaks[room.key] == pytest.approx(max(total))
