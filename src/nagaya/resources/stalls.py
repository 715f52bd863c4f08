"""Who stood still for want of a CPU or of memory, because of whom: a bounded ledger of an hour.

The kernel says how long a machine waited, not for whom. So the time between two looks is divided: what its
own limit held is charged to the limit; what remains to those that ran meanwhile on the CPUs where it may run,
by the CPU time that they got there; and what the machine waited while itself ran, to itself. Time without
memory is charged to those that hold more than their share of it, in proportion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

KEPT_S = 3600
HOST = "%host"  # what runs on the CPUs and is no machine
MOST_LOOKS = 1800  # in KEPT_S, one every two seconds
MOST_BLAMED = 8  # of one wait; what is beyond goes to the largest

Cause = Literal["machine", "device", "limit"]
Resource = Literal["cpu", "memory"]


@dataclass(frozen=True, slots=True)
class Look:
    """A machine's counters at one moment, microseconds; None: nothing counts it.

    `wait_us`, `queue_us` and `throttled_us` as in `nagaya.resources.pressure.GroupPressure`; `cpus`: those
    that it may run on; `limit_hits`: how often it asked for memory beyond its limit.
    """

    used_us: int
    cpus: frozenset[int]
    wait_us: int | None = None
    queue_us: int | None = None
    throttled_us: int | None = None
    memory_us: int | None = None
    limit_hits: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """`waiter` stood still for `wait_us`; `whom`: a machine or `HOST`, "" unless the cause is "machine"."""

    waiter: str
    resource: Resource
    cause: Cause
    whom: str
    wait_us: int


class Stalls:
    """The ledger. `look` feeds it; times are seconds of a clock that only runs forward."""

    def __init__(self) -> None:
        self._charges: deque[tuple[float, list[Charge]]] = deque(maxlen=MOST_LOOKS)
        self._looks: Mapping[str, Look] = {}
        self._busy: Mapping[int, int] = {}
        self._held: dict[str, int] = {}  # throttled time that the wait, which lags behind, has not shown yet
        self.looked_at = float("-inf")

    def look(
        self,
        now: float,
        looks: Mapping[str, Look],
        busy_us: Mapping[int, int],
        holders: Mapping[str, int] = MappingProxyType({}),
    ) -> list[Charge]:
        """Take in what machines' counters are now, and each CPU's busy time; returns the new charges.

        `holders`: bytes that a machine, or `HOST`, holds beyond its share, while memory is short.
        """
        used = {name: _grown(self._used(name), one.used_us) for name, one in looks.items()}
        others = {cpu: max(0, busy_us[cpu] - self._busy.get(cpu, busy_us[cpu])) for cpu in busy_us}
        for name, one in looks.items():
            for cpu in one.cpus & others.keys():
                others[cpu] = max(0, others[cpu] - used[name] // len(one.cpus))
        charges: list[Charge] = []
        for name, one in looks.items():
            before = self._looks.get(name)
            if before is not None:
                charges += self._cpu(name, before, one, _rivals(name, looks, used, others))
                charges += _memory(name, before, one, holders)
        self._held = {name: held for name, held in self._held.items() if name in looks}
        self._looks, self._busy, self.looked_at = dict(looks), dict(busy_us), now
        if charges:
            self._charges.append((now, charges))
        while self._charges and self._charges[0][0] < now - KEPT_S:
            self._charges.popleft()
        return charges

    def rows(self, now: float, since: float) -> list[Charge]:
        """What was charged in the last `since` seconds, one row for each waiter, resource, cause and whom."""
        sums: dict[tuple[str, Resource, Cause, str], int] = {}
        for at, charges in self._charges:
            if at > now - since:
                for one in charges:
                    key = (one.waiter, one.resource, one.cause, one.whom)
                    sums[key] = sums.get(key, 0) + one.wait_us
        return [Charge(*key, wait_us) for key, wait_us in sums.items()]

    def _used(self, name: str) -> int | None:
        return self._looks[name].used_us if name in self._looks else None

    def _cpu(self, name: str, before: Look, after: Look, rivals: Mapping[str, int]) -> Iterable[Charge]:
        wait = _grown(before.wait_us, after.wait_us)
        held = self._held.get(name, 0) + _grown(before.throttled_us, after.throttled_us)
        limit = min(wait, held)
        self._held[name] = min(held - limit, _grown(before.throttled_us, after.throttled_us))
        if limit:
            yield Charge(name, "cpu", "limit", "", limit)
        yield from _divided(name, "cpu", wait - limit, rivals)
        own = _grown(before.queue_us, after.queue_us) - wait
        if own > 0:
            yield Charge(name, "cpu", "device", "", own)


def _rivals(
    name: str, looks: Mapping[str, Look], used: Mapping[str, int], others: Mapping[int, int]
) -> dict[str, int]:
    """CPU time that others got where `name` may run."""
    cpus = looks[name].cpus
    found = {
        other: used[other] * len(one.cpus & cpus) // len(one.cpus)
        for other, one in looks.items()
        if other != name and used[other] and one.cpus
    }
    found[HOST] = sum(others[cpu] for cpu in cpus & others.keys())
    return {other: time for other, time in found.items() if time}


def _divided(name: str, resource: Resource, wait: int, rivals: Mapping[str, int]) -> Iterable[Charge]:
    """`wait` in proportion to what each of `rivals` got; without any it was the CPU's, or memory's, own."""
    if wait <= 0:
        return
    blamed = sorted(rivals, key=lambda whom: (-rivals[whom], whom))[:MOST_BLAMED]
    if not blamed:
        yield Charge(name, resource, "device", "", wait)
        return
    total = sum(rivals[whom] for whom in blamed)
    shares = {whom: wait * rivals[whom] // total for whom in blamed}
    shares[blamed[0]] += wait - sum(shares.values())
    yield from (Charge(name, resource, "machine", whom, share) for whom, share in shares.items() if share)


def _memory(name: str, before: Look, after: Look, holders: Mapping[str, int]) -> Iterable[Charge]:
    stalled = _grown(before.memory_us, after.memory_us)
    if stalled and _grown(before.limit_hits, after.limit_hits):
        yield Charge(name, "memory", "limit", "", stalled)
    else:
        others = {whom: size for whom, size in holders.items() if whom != name and size > 0}
        yield from _divided(name, "memory", stalled, others)


def _grown(before: int | None, after: int | None) -> int:
    """By how much a counter grew; 0 if it began anew or is not known."""
    return 0 if before is None or after is None else max(0, after - before)
