"""The disks of a host with more machines than it has: recorded patterns, replayed through the arbiter.

One `Scene` is one disk of the host at one hour of the day. Everything here is computed beside the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nagaya.models.plan import PlanRow
from nagaya.plane.demand import Device, Outcome, simulate
from nagaya.plane.shares import ArbiterStatus, ShareNode

SECONDS, WARM_UP = 8.0, 10.0  # of simulated time; the window is found in the warm-up
LEAST_BOUND_US = 10_000  # a disk without an objective may take so long, or
GUESSED = 0.01  # of the requests: with more of them guessed, p99 is a guess
ANSWERS = 100  # a disk with fewer has no p99
SLOWER = 3.0  # so many times what it takes now

Recorded = Mapping[str, Mapping[int, tuple[str, Mapping[str, Any]]]]  # of a machine: disk, hour of the day


@dataclass(frozen=True, slots=True)
class Scene:
    """A disk of the host: who asks it for what, and the nodes of its arbiter.

    `like` are the disks of the machine that is copied; `bounds` the latency (us) that a disk may have.
    """

    worker: str
    hour: int
    device: Device
    patterns: tuple[Mapping[str, Any], ...]
    nodes: tuple[ShareNode, ...]
    like: tuple[Mapping[str, Any], ...]
    objectives: Mapping[str, int]

    def outcome(self, more: int) -> Outcome:
        """What all disks get with `more` copies."""
        copies = [
            {**one, "id": _copied(one["id"], number)} for number in range(1, more + 1) for one in self.like
        ]
        ids = {part for one in self.like for part in (one["id"], one["id"].partition("/")[0])}
        nodes = [
            replace(node, id=_copied(node.id, number), parent=_parent(node.parent, ids, number))
            for number in range(1, more + 1)
            for node in self.nodes
            if node.id in ids
        ]
        return simulate(
            self.device, [*self.patterns, *copies], [*self.nodes, *nodes], seconds=SECONDS, warm_up=WARM_UP
        )

    def row(self, more: int, now: Outcome | None = None, bound_us: int | None = None) -> PlanRow:
        """What they get in short; `now` is the outcome without copies."""
        after = now if more == 0 and now is not None else self.outcome(more)
        before = {leaf.id: leaf.p99_us for leaf in (now or after).leaves}
        mine = {one["id"] for one in self.like}
        answered = [leaf for leaf in after.leaves if leaf.iops * after.seconds >= ANSWERS]
        bounds = {leaf.id: self._bound(_original(leaf.id, mine), before, bound_us) for leaf in answered}
        worst = max(answered, key=lambda leaf: leaf.p99_us / bounds[leaf.id], default=None)
        return PlanRow(
            disk=self.worker,
            more=more,
            iops=sum(leaf.iops for leaf in after.leaves),
            p99_us=max((leaf.p99_us for leaf in answered if _original(leaf.id, mine) in mine), default=0.0),
            worst=_original(worst.id, mine) if worst else "",
            worst_p99_us=worst.p99_us if worst else 0.0,
            worst_bound_us=bounds[worst.id] if worst else 0.0,
            guessed=after.guessed > GUESSED,
        )

    def _bound(self, disk: str, before: Mapping[str, float], bound_us: int | None) -> float:
        machine = disk.partition("/")[0]
        if bound_us is not None:
            return bound_us
        if machine in self.objectives:
            return self.objectives[machine]
        return max(LEAST_BOUND_US, SLOWER * before.get(disk, 0))


def broken(row: PlanRow) -> bool:
    """Whether a disk takes longer than it may."""
    return row.worst_p99_us > row.worst_bound_us


def search(scene: Scene, most: int, bound_us: int | None = None) -> tuple[int, list[PlanRow]]:
    """The most copies, `most` at most, with which no disk takes too long; -1: none. And what was tried."""
    now = scene.outcome(0)
    rows = {0: scene.row(0, now, bound_us)}

    def good(count: int) -> bool:
        if count not in rows:
            rows[count] = scene.row(count, now, bound_us)
        return not broken(rows[count])

    low, high = (0, 1) if good(0) else (-1, 0)
    while low >= 0 and high <= most and good(high):
        low, high = high, max(high + 1, min(high * 2, most))
    high = min(high, most + 1)
    while low >= 0 and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low, [rows[count] for count in sorted(rows)]


def scene_of(
    place: tuple[str, Device],
    machines: Mapping[str, Recorded],
    like: str,
    arbiters: Iterable[ArbiterStatus],
    objectives: Mapping[str, int],
) -> Scene | None:
    """A worker's disk at its busiest hour, with what `machines` ask of it; None if `like` does not."""
    worker, device = place
    disks = {
        disk: {hour: pattern for hour, (where, pattern) in hours.items() if where == worker}
        for recorded in machines.values()
        for disk, hours in recorded.items()
    }
    disks = {disk: hours for disk, hours in disks.items() if hours}
    if not any(disk.partition("/")[0] == like for disk in disks) or not device.cells:
        return None
    seen = sorted({at for hours in disks.values() for at in hours})
    hour = max(seen, key=lambda at: sum(rate(_at(hours, at)) for hours in disks.values()))
    patterns = {disk: _at(hours, hour) for disk, hours in disks.items()}
    nodes = [node for one in arbiters if one.worker == worker for node in one.nodes]
    return Scene(
        worker,
        hour,
        device,
        tuple(patterns.values()),
        tuple(_share(node) for node in nodes),
        tuple(pattern for disk, pattern in patterns.items() if disk.partition("/")[0] == like),
        objectives,
    )


def _at(hours: Mapping[int, Mapping[str, Any]], hour: int) -> Mapping[str, Any]:
    """Of that hour, or of the busiest that was seen."""
    return hours[hour] if hour in hours else max(hours.values(), key=rate)


def rate(pattern: Mapping[str, Any]) -> float:
    """Requests a second."""
    count: int = sum(one["count"] for one in pattern["mix"])
    recorded: int = pattern["recorded_us"]
    return count * 1e6 / max(1, recorded)


def _copied(node_id: str, number: int) -> str:
    machine, slash, rest = node_id.partition("/")
    return f"{machine}.{number}{slash}{rest}"


def _parent(parent: str | None, copied: Collection[str], number: int) -> str | None:
    return _copied(parent, number) if parent is not None and parent in copied else parent


def _original(leaf: str, mine: Collection[str]) -> str:
    """Of a copy the disk that it is a copy of."""
    machine, slash, rest = leaf.partition("/")
    original = f"{machine.rpartition('.')[0]}{slash}{rest}"
    return original if original in mine else leaf


def _share(node: object) -> ShareNode:
    names: Sequence[str] = [field.name for field in fields(ShareNode)]
    values: Any = {name: getattr(node, name) for name in names}
    return ShareNode(**values)
