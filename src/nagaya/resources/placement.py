"""Which CPU a single-vCPU machine runs on. All its processes share one CPU, which makes its system calls five
times cheaper (docs/engines.md), so a machine moves as a whole, and seldom. What machines reserve on one CPU
is never more than that CPU has.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import ResourceError
from nagaya.resources.cgroups import Cgroup

THRESHOLD = 0.25  # of a CPU: less than this between the busiest and the idlest is not worth a move
MIN_LOAD = 0.05  # of a CPU: a machine that uses less changes nothing by moving
GAIN = 0.75  # a move must leave at most this part of the difference
REST_S = 10.0  # a machine that moved stays this long
CPU_MOST = 0.95  # of one CPU that machines on it may reserve: the plane and the kernel run there too
_SLACK = 1e-9
_AFFINITY_PASSES = 10


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine asks of its CPU. `cpus`: where it may be, None for anywhere; `reservation`: 0 to 1."""

    reservation: float = 0.0
    cpus: frozenset[int] | None = None


ANYWHERE = Need()


@dataclass(frozen=True, slots=True)
class Placed:
    """A machine on a CPU. `load` is how much of the CPU it used lately, 0 to 1."""

    machine: str
    cpu: int
    load: float
    may: frozenset[int] | None = None  # CPUs that it may be on; None: all


@dataclass(frozen=True, slots=True)
class Move:
    """Move all of `machine` to `cpu`."""

    machine: str
    cpu: int


def rebalance(loads: Mapping[int, float], machines: Sequence[Placed]) -> Move | None:
    """The one move that evens out `loads` (CPU to busy part, 0 to 1) best, or None if none is worth it.

    One move a call, then measure again: a decision on stale loads is how machines start to jump back and
    forth.
    """
    if len(loads) < 2:
        return None
    busiest = max(loads, key=lambda cpu: (loads[cpu], -cpu))
    idlest = min(loads, key=lambda cpu: (loads[cpu], cpu))
    gap = loads[busiest] - loads[idlest]
    if gap < THRESHOLD:
        return None
    candidates = [
        one
        for one in machines
        if one.cpu == busiest and one.load >= MIN_LOAD and (one.may is None or idlest in one.may)
    ]
    best = min(candidates, key=lambda one: (abs(gap - 2 * one.load), one.machine), default=None)
    if best is None or abs(gap - 2 * best.load) > GAIN * gap:
        return None
    return Move(best.machine, idlest)


class Placement:
    """Remembers where machines are, measures, and decides with `rebalance`."""

    def __init__(self, cpus: Iterable[int] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._cpus = tuple(sorted(cpus)) or tuple(sorted(os.sched_getaffinity(0)))
        self._clock = clock
        self._where: dict[str, int] = {}
        self._needs: dict[str, Need] = {}
        self._moved: dict[str, float] = {}
        self._usage: dict[str, int] = {}
        self._measured = clock()

    def choose(self, machine: str, need: Need = ANYWHERE) -> int:
        """The CPU with the fewest machines on which it may run, now also with this one.

        A machine that has one already keeps it if it may. Raises `ResourceError` if no CPU has left what it
        reserves.
        """
        allowed = self._allowed(machine, need)
        if not allowed:
            raise self._no_cpu(machine, need)
        if self._where.get(machine) not in allowed:
            counts = Counter(cpu for other, cpu in self._where.items() if other != machine)
            self._where[machine] = min(allowed, key=lambda cpu: (counts[cpu], cpu))
        self._needs[machine] = need
        return self._where[machine]

    def place(self, machine: str, cpu: int, need: Need = ANYWHERE) -> None:
        """`machine` is on `cpu`: an adopted one, or one that has been moved."""
        self._where[machine] = cpu
        self._needs[machine] = need

    def forget(self, machine: str) -> None:
        """It has ended."""
        for table in (self._where, self._needs, self._moved, self._usage):
            table.pop(machine, None)

    def cpu_of(self, machine: str) -> int | None:
        """Where it is, if known."""
        return self._where.get(machine)

    def decide(self, usage_us: Mapping[str, int], loads: Mapping[int, float]) -> Move | None:
        """The move to make now, given machines' CPU time so far and CPUs' loads since the last call."""
        now = self._clock()
        elapsed_us = max(1.0, (now - self._measured) * 1e6)
        machines = [
            Placed(
                machine,
                self._where[machine],
                min(1.0, (used - self._usage[machine]) / elapsed_us),
                frozenset(self._allowed(machine, self._needs.get(machine, ANYWHERE))),
            )
            for machine, used in usage_us.items()
            if machine in self._usage
            and machine in self._where
            and now - self._moved.get(machine, -REST_S) >= REST_S
        ]
        self._usage, self._measured = dict(usage_us), now
        move = rebalance({cpu: loads[cpu] for cpu in self._cpus if cpu in loads}, machines)
        if move is not None:
            self._where[move.machine] = move.cpu
            self._moved[move.machine] = now
        return move

    def _allowed(self, machine: str, need: Need) -> list[int]:
        """Where it may be, and what it reserves is left."""
        reserved = self._reserved(machine)
        return [
            cpu
            for cpu in self._cpus
            if (need.cpus is None or cpu in need.cpus)
            and (not need.reservation or reserved[cpu] + need.reservation <= CPU_MOST + _SLACK)
        ]

    def _reserved(self, but: str) -> Mapping[int, float]:
        reserved = dict.fromkeys(self._cpus, 0.0)
        for machine, cpu in self._where.items():
            if machine != but and cpu in reserved:
                reserved[cpu] += self._needs.get(machine, ANYWHERE).reservation
        return reserved

    def _no_cpu(self, machine: str, need: Need) -> ResourceError:
        reserved = self._reserved(machine)
        wanted = [cpu for cpu in self._cpus if need.cpus is None or cpu in need.cpus]
        left = {cpu: max(0.0, CPU_MOST - reserved[cpu]) for cpu in wanted}
        words = ", ".join(
            f"{left[cpu]:.2g} of CPU {cpu}" for cpu in sorted(left, key=lambda cpu: -left[cpu])[:8]
        )
        return ResourceError(
            f"it reserves {need.reservation:g}, {CPU_MOST:g} of one can be promised, and {words} are left",
            hint="reserve less, or let another machine reserve less (nagaya set)",
            room="cpu",
            need=need.reservation,
            free=max(left.values(), default=0.0),
            most=CPU_MOST,
            machine=machine,
        )


class CpuMeter:
    """How busy each CPU was between two calls, from /proc/stat."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._last = self._read()

    def loads(self) -> dict[int, float]:
        """Busy part of each CPU since the last call, 0 to 1."""
        now, before = self._read(), self._last
        self._last = now
        return {
            cpu: (busy - before[cpu][0]) / max(1, total - before[cpu][1])
            for cpu, (busy, total) in now.items()
            if cpu in before
        }

    def _read(self) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for line in self._path.read_text().splitlines():
            if line.startswith("cpu") and line[3].isdigit():
                name, *ticks = line.split()
                times = [int(tick) for tick in ticks[:8]]  # guest time is in user time already
                found[int(name[3:])] = (sum(times) - times[3] - times[4], sum(times))
        return found


def move_to_cpus(group: Cgroup, cpus: Iterable[int]) -> None:
    """Move all tasks of a machine to `cpus`: by cpuset at once, else by affinity until none is left."""
    wanted = set(cpus)
    if group.set_cpus(wanted):
        return
    for _ in range(_AFFINITY_PASSES):
        if not sum(_pin(task, wanted) for pid in group.pids() for task in _tasks(pid)):
            return


def _tasks(pid: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pin(task: int, cpus: set[int]) -> bool:
    """Whether it had to be moved."""
    try:
        if os.sched_getaffinity(task) == cpus:
            return False
        os.sched_setaffinity(task, cpus)
    except ProcessLookupError:
        return False
    return True
