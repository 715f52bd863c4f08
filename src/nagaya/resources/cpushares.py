"""Weights of control groups that keep reservations of CPU time, also beside machines with larger weights.

The kernel knows weights and limits of CPU time, no reservations. When all machines of some CPUs want more
than there is, each is to get what it reserves, or its share by weight if that is more:

    CPU time of a machine = max(reservation, weight * level), not more than it can use,

with the one level at which these add up to the CPUs. A machine whose share is below its reservation gets the
weight that stands for it at that level. Whoever idles only leaves more to the others, so what holds while all
want everything holds always. Weights are worked out anew when machines come, go, move, or are set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WEIGHT_MAX = 10_000  # of a control group, v2; Documentation/admin-guide/cgroup-v2.rst, cpu.weight
DEFAULT = 100
HOST_GROUPS = 4  # busy groups or tasks of the host's own, beside which reservations hold
_SPARE = 1e-3  # of the CPUs, that reservations leave at least: a level of 0 has no weights
_STEPS = 60


@dataclass(frozen=True, slots=True)
class Contender:
    """A machine that competes for CPUs."""

    machine: str
    weight: int
    reservation: float  # CPUs
    most: float  # CPUs that it can use: its limit, or its vCPUs
    cpus: frozenset[int]  # where it may run


def weights(contenders: Iterable[Contender]) -> dict[str, float]:
    """The weight of each machine's control group, 100 is the default one, by machine."""
    found: dict[str, float] = {}
    for group in _components(contenders):
        level = _level(group)
        found |= {one.machine: max(float(one.weight), one.reservation / level) for one in group}
    scale = min(1.0, WEIGHT_MAX / max(found.values(), default=1.0))
    return {machine: max(1.0, weight * scale) for machine, weight in found.items()}


def base_weight(contenders: Iterable[Contender], cpus: int) -> float:
    """The weight of the group that holds all machines, beside the host's own groups and tasks of weight 100.

    As much as keeps the reservations while `HOST_GROUPS` of those are busy; without reservations, 100.
    """
    reserved = min(sum(one.reservation for one in contenders), cpus * (1 - _SPARE))
    return min(float(WEIGHT_MAX), max(float(DEFAULT), DEFAULT * HOST_GROUPS * reserved / (cpus - reserved)))


def fair(contenders: Sequence[Contender], weight_of: Mapping[str, float]) -> dict[str, float]:
    """The CPU time that each gets by these weights if all want as much as they can use, by machine.

    What the kernel's fair scheduler does, on CPUs that all contenders may use.
    """
    capacity = float(len(frozenset().union(*(one.cpus for one in contenders))))
    low, high = 0.0, max((one.most / weight_of[one.machine] for one in contenders), default=0.0)
    for _ in range(_STEPS):
        level = (low + high) / 2
        if sum(min(one.most, weight_of[one.machine] * level) for one in contenders) > capacity:
            high = level
        else:
            low = level
    return {one.machine: min(one.most, weight_of[one.machine] * low) for one in contenders}


def _components(contenders: Iterable[Contender]) -> list[list[Contender]]:
    """Those who share CPUs with one another, directly or by way of others."""
    found: list[tuple[set[int], list[Contender]]] = []
    for one in contenders:
        cpus, members = set(one.cpus), [one]
        apart = []
        for other_cpus, others in found:
            if cpus & other_cpus:
                cpus |= other_cpus
                members = [*others, *members]
            else:
                apart.append((other_cpus, others))
        found = [*apart, (cpus, members)]
    return [members for _, members in found]


def _level(group: Sequence[Contender]) -> float:
    """CPUs for each unit of weight, when all want as much as they can use."""
    cpus = len(frozenset().union(*(one.cpus for one in group)))
    capacity = max(float(cpus), sum(one.reservation for one in group) / (1 - _SPARE))
    low, high = 0.0, max(one.most / one.weight for one in group)
    for _ in range(_STEPS):
        level = (low + high) / 2
        if sum(min(one.most, max(one.reservation, one.weight * level)) for one in group) > capacity:
            high = level
        else:
            low = level
    return high
