"""What a host can carry by what its machines have asked for: sums by hour of the day, and packing.

A `Day` has a value for each hour of a day, in UTC: the 99th percentile of the samples, of several days the
greatest. An hour that was never seen counts as the greatest of those that were: nobody is idle unseen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nagaya.resources.demand import METRICS, Hour

HOURS = 24
MOST = 1000  # machines more that are looked at

Day = tuple[float, ...]
NOTHING: Day = (0.0,) * HOURS


@dataclass(frozen=True, slots=True)
class Load:
    """What one machine asks for: `cpu` in CPUs, `memory` in bytes, `iops`, `network:lan` in bytes/s."""

    name: str
    days: Mapping[str, Day]

    def day(self, key: str) -> Day:
        """Of one resource; nothing if it does not use it."""
        return self.days.get(key, NOTHING)


@dataclass(frozen=True, slots=True)
class Room:
    """What there is of one resource for all machines together."""

    key: str
    limit: float


@dataclass(frozen=True, slots=True)
class Group:
    """Machines that fit one host. `peaks` and `hours`: of each room the most at a time, and when."""

    names: tuple[str, ...]
    peaks: Mapping[str, float]
    hours: Mapping[str, int]


def days_of(hours: Iterable[Hour]) -> dict[str, Day]:
    """The day of each metric, in the units of a sample; empty if nothing is known."""
    seen: dict[str, dict[int, float]] = {metric: {} for metric in METRICS}
    for one in hours:
        for metric, quantiles in one.quantiles.items():
            slot = one.hour % HOURS
            seen[metric][slot] = max(seen[metric].get(slot, 0), quantiles.p99)
    return {
        metric: tuple(slots.get(slot, max(slots.values())) for slot in range(HOURS))
        for metric, slots in seen.items()
        if slots
    }


def constant(value: float) -> Day:
    """The same at any hour."""
    return (value,) * HOURS


def added(days: Iterable[Day]) -> Day:
    """Hour by hour."""
    total = [0.0] * HOURS
    for day in days:
        total = [one + other for one, other in zip(total, day, strict=True)]
    return tuple(total)


def peak(day: Day) -> tuple[float, int]:
    """The greatest value and its hour, the first of several."""
    value = max(day)
    return value, day.index(value)


def with_more(base: Day, each: Day, count: int) -> Day:
    """`count` machines more."""
    return tuple(one + count * more for one, more in zip(base, each, strict=True))


def how_many(room: Room, base: Day, each: Day) -> int:
    """How many machines more the room has place for, `MOST` at most; -1 if it is too small already."""
    if max(base) > room.limit:
        return -1
    counts = [
        int(min(MOST, (room.limit - one) / more + 1e-9))
        for one, more in zip(base, each, strict=True)
        if more > 0
    ]
    return min([MOST, *counts])


def packed(loads: Sequence[Load], rooms: Sequence[Room]) -> tuple[list[Group], list[str]]:
    """Groups of machines each of which fits a host with `rooms`, and the names of those that fit none.

    First fit, the largest first: never more than 11/9 of the fewest hosts and one when one resource decides.
    Machines whose peaks do not meet fit together though their peaks added up would not.
    """
    alone = [one.name for one in loads if not _fits([one], rooms)]
    ordered = sorted(
        (one for one in loads if one.name not in alone), key=lambda one: (-_size(one, rooms), one.name)
    )
    groups: list[list[Load]] = []
    for load in ordered:
        place = next((group for group in groups if _fits([*group, load], rooms)), None)
        if place is None:
            groups.append([load])
        else:
            place.append(load)
    return [_group(group, rooms) for group in groups], alone


def _fits(loads: Sequence[Load], rooms: Sequence[Room]) -> bool:
    return all(max(added(one.day(room.key) for one in loads)) <= room.limit for room in rooms)


def _size(load: Load, rooms: Sequence[Room]) -> float:
    return max((max(load.day(room.key)) / room.limit for room in rooms if room.limit), default=0.0)


def _group(loads: Sequence[Load], rooms: Sequence[Room]) -> Group:
    peaks = {room.key: peak(added(one.day(room.key) for one in loads)) for room in rooms}
    return Group(
        tuple(sorted(one.name for one in loads)),
        {key: value for key, (value, _) in peaks.items()},
        {key: hour for key, (_, hour) in peaks.items()},
    )
