"""Whether one more machine fits the host's CPUs and memory: sums of promises, and the words of a refusal.

A promise counts from the moment a start is decided until the machine is down. Disks and networks are counted
by `nagaya.resources.reservations`, with what their arbiters have measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import ResourceError
from nagaya.resources.policy import HostPolicy, Overcommit
from nagaya.spec import MachineSpec
from nagaya.units import human_size

MIB = 2**20
OVERHEAD = 16 * MIB  # what the kernel of one User-mode Linux machine takes beyond its guest's memory
_NAMED = 8  # of those who have something; a message is not a table
_SLACK = 1e-9  # of a CPU: sums of decimal fractions


@dataclass(frozen=True, slots=True)
class Pool:
    """One resource that machines share. Amounts are CPUs, or bytes."""

    resource: str
    total: float
    kept: float  # what stays with the host
    overcommit: Overcommit

    @property
    def limit(self) -> float:
        """What may be reserved by all machines together."""
        return max(0, self.total - self.kept)

    def text(self, amount: float) -> str:
        """An amount in words."""
        return f"{round(amount, 3):g} CPUs" if self.resource == "cpu" else human_size(amount)


@dataclass(frozen=True, slots=True)
class Ask:
    """What one machine asks for of a pool."""

    name: str
    size: float  # what its guest can see and use
    reservation: float  # what it is to get whatever the others do
    waits: bool = False  # it does not run yet: it is ahead in the queue


def host_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def host_memory() -> int:
    """Bytes of memory that this process's cgroup and the host have, whichever is less."""
    total = _meminfo("MemTotal")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = limit.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def available_memory() -> int:
    """Bytes that the kernel thinks can be had without swapping."""
    return _meminfo("MemAvailable")


def pools(policy: HostPolicy) -> tuple[Pool, Pool]:
    """The host's CPUs and its memory."""
    cpus, memory = host_cpus(), host_memory()
    return (
        Pool("cpu", cpus, policy.cpu.kept_of(cpus), policy.cpu.overcommit),
        Pool("memory", memory, policy.memory.kept_of(memory), policy.memory.overcommit),
    )


def asks(name: str, spec: MachineSpec, *, waits: bool = False) -> tuple[Ask, Ask]:
    """What a machine asks for of the CPUs and of the memory, in the order of `pools`."""
    memory = spec.memory
    return (
        Ask(name, min(spec.cpus, spec.cpu.limit or spec.cpus), spec.cpu.reservation, waits),
        Ask(name, memory.size + OVERHEAD, memory.reservation + OVERHEAD, waits),
    )


def promised(pool: Pool, ask: Ask) -> float:
    """What a machine is promised: what it reserves, or all that it can see if nothing is overcommitted."""
    return max(ask.size, ask.reservation) if pool.overcommit == "none" else ask.reservation


def left(pool: Pool, others: Iterable[Ask]) -> float:
    """What could still be promised."""
    return max(0, pool.limit - sum(promised(pool, other) for other in others))


def admit(pool: Pool, ask: Ask, others: Sequence[Ask], before: Ask | None = None) -> None:
    """Raise `ResourceError` with the arithmetic unless `ask` fits beside `others`.

    `before` is what the machine has already: taking less is never refused.
    """
    for rule in _rules(pool):
        need, taken = rule.amount(ask), sum(map(rule.amount, others))
        fits = not need or taken + need <= rule.limit + _SLACK
        if not fits and (before is None or need > rule.amount(before)):
            raise _refusal(pool, rule, ask, others, has=before is not None)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is summed up, and what the sum may be."""

    amount: Callable[[Ask], float]
    limit: float
    times: float | None = None  # the ratio of overcommit, where sizes are summed up


def _rules(pool: Pool) -> Iterator[_Rule]:
    yield _Rule(lambda ask: promised(pool, ask), pool.limit)
    if not isinstance(pool.overcommit, str):
        yield _Rule(lambda ask: max(ask.size, ask.reservation), pool.limit * pool.overcommit, pool.overcommit)


def _refusal(pool: Pool, rule: _Rule, ask: Ask, others: Sequence[Ask], *, has: bool) -> ResourceError:
    need, taken = rule.amount(ask), sum(map(rule.amount, others))
    free = max(0, rule.limit - taken)
    sizes = pool.overcommit == "none" or rule.times is not None
    times = f", {rule.times:g} times the rest may be given" if rule.times is not None else ""
    return ResourceError(
        f"{ask.name} {'needs' if sizes else 'reserves'} {pool.text(need)} of {pool.resource}"
        f"{_overhead(pool)}, {pool.text(free)} are left: the host has {pool.text(pool.total)}, "
        f"{pool.text(pool.kept)} stay with it{times}, {pool.text(taken)} are promised"
        f"{_listed(pool, rule, others)}",
        hint=_hint(pool, rule, ask, has=has),
        machine=ask.name,
        room=pool.resource,
        need=need,
        free=free,
        most=rule.limit,
        host=pool.total,
        kept=pool.kept,
        promised=taken,
        overcommit=pool.overcommit,
    )


def _overhead(pool: Pool) -> str:
    return f" (its own and {human_size(OVERHEAD)} of overhead)" if pool.resource == "memory" else ""


def _listed(pool: Pool, rule: _Rule, others: Sequence[Ask]) -> str:
    most = sorted((one for one in others if rule.amount(one)), key=lambda one: (-rule.amount(one), one.name))
    words = [
        f"{one.name} {pool.text(rule.amount(one))}{', which waits' * one.waits}" for one in most[:_NAMED]
    ]
    words += [f"{len(most) - _NAMED} more"] if len(most) > _NAMED else []
    return f" ({', '.join(words)})" if words else ""


def _hint(pool: Pool, rule: _Rule, ask: Ask, *, has: bool) -> str:
    if rule.amount(ask) > rule.limit:
        return f"this host never has that much: lower {pool.resource} of {ask.name}"
    fair = f"nagaya host set {pool.resource}.overcommit=fair"
    less = "" if pool.overcommit == "fair" else f", or promise only what is reserved: {fair}"
    if has:  # it runs, and asks for more
        return f"stop another machine, or let one reserve less (nagaya set){less}"
    return f"stop a machine, queue for it (nagaya start {ask.name} --wait){less}"


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ResourceError(f"/proc/meminfo has no {key}")
