"""`why`: what a machine waited for, in words, and which knob would change it (docs/arbitration.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nagaya.models.waits import Advice, WaitInfo, WhyAnswer
from nagaya.plane.shares import ArbiterStatus, Objective
from nagaya.spec import MachineSpec
from nagaya.units import format_rate, format_time, human_time

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

MOST_WEIGHT = 10000
_NOTICED = 0.05  # of the waiting: what is less gets no advice

Cause = Literal["machine", "device", "limit"]


async def matrix(supervisor: Supervisor, since: int) -> list[WaitInfo]:
    """Who waited for whom in the last `since` seconds, all machines, the longest first."""
    name = supervisor.shares.names()
    rows = await supervisor.parts.plane.waits(since)
    found = [WaitInfo(name(row.waiter), row.cause, name(row.whom), row.wait_us, row.requests) for row in rows]
    return sorted(found, key=lambda row: -row.wait_us)


async def why(supervisor: Supervisor, machine: str, since: int) -> WhyAnswer:
    """What one machine waited for. Raises `NotFoundError`."""
    one = supervisor.get(machine)
    waited = [row for row in await matrix(supervisor, since) if row.waiter.partition("/")[0] == one.name]
    rows = merged(waited, one.name)
    arbiters = await supervisor.parts.plane.arbiters()
    total, requests = sum(row.wait_us for row in rows), sum(row.requests for row in rows)
    objective = _objective(arbiters, one.row.id)
    return WhyAnswer(
        name=one.name,
        since=since,
        wait_us=total,
        requests=requests,
        objective=objective,
        rows=waited,
        words=[*_words(one, rows, since, _limits(supervisor, one)), *_objective_words(one.spec, objective)],
        advice=list(_advice(supervisor, one, rows)),
    )


def merged(rows: Sequence[WaitInfo], name: str) -> list[WaitInfo]:
    """One row for each cause and machine, whichever disks it was about; the longest first."""
    sums: dict[tuple[Cause, str], tuple[int, int]] = {}
    for row in rows:
        key = (row.cause, row.whom.partition("/")[0])
        wait_us, requests = sums.get(key, (0, 0))
        sums[key] = (wait_us + row.wait_us, requests + row.requests)
    found = [WaitInfo(name, cause, whom, *both) for (cause, whom), both in sums.items()]
    return sorted(found, key=lambda row: -row.wait_us)


def span(seconds: int) -> str:
    """`the last minute`, `the last 5 minutes`, `the last 90 seconds`."""
    for unit, factor in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds % factor == 0:
            count = seconds // factor
            return f"the last {unit}" if count == 1 else f"the last {count} {unit}s"
    return f"the last {seconds} seconds"


def _words(one: Supervised, rows: Sequence[WaitInfo], since: int, limits: Sequence[_Limit]) -> Iterator[str]:
    total, requests = sum(row.wait_us for row in rows), sum(row.requests for row in rows)
    if not total:
        yield f"{one.name} waited for nobody at its disks in {span(since)}."
        return
    together = total / since / 1e6
    aside = f" ({together:.1f} requests at a time)" if together > 1 else ""
    yield (
        f"{one.name} waited {human_time(total)} at its disks in {span(since)}{aside}: "
        f"{requests} requests, {human_time(total / max(1, requests))} each."
    )
    for row in rows:
        yield f"{human_time(row.wait_us)} ({row.wait_us / total:.0%}) {_because(row, limits)}"


def _because(row: WaitInfo, limits: Sequence[_Limit]) -> str:
    if row.cause == "limit":
        named = ", ".join(f"{limit.name} {limit.field}={limit.value}" for limit in limits)
        return f"at its limit ({named})." if named else "at a limit that it no longer has."
    if row.cause == "device":
        return "on the disk itself, which was busy with its own requests."
    if row.whom.startswith("%"):
        return f"because the host's own work was served ({row.whom[1:]})."
    return f"because {row.whom} was served."


def _objective_words(spec: MachineSpec, objective: Objective) -> Iterator[str]:
    if spec.disk.latency_p99 is not None and objective != "none":
        said = "is met" if objective == "met" else "cannot be met"
        yield f"Its objective, 99 of 100 requests within {format_time(spec.disk.latency_p99)}, {said}."


def _objective(arbiters: Sequence[ArbiterStatus], machine_id: str) -> Objective:
    """The worst of the machine's own on its disks."""
    found = {node.objective for arbiter in arbiters for node in arbiter.nodes if node.id == machine_id}
    return "missed" if "missed" in found else "met" if "met" in found else "none"


def _advice(supervisor: Supervisor, one: Supervised, rows: Sequence[WaitInfo]) -> Iterator[Advice]:
    total = sum(row.wait_us for row in rows)
    others = [row.whom for row in rows if row.cause == "machine" and row.wait_us >= total * _NOTICED]
    machines = [other for name in others for other in supervisor.all() if other.name == name]
    if machines:
        yield from _against(supervisor, one, machines[0])
    elif any(name.startswith("%") for name in others):
        yield Advice("nagaya operation list", "shows the host's work; it has a low weight, and ends")
    for row in rows:
        if row.cause == "limit" and row.wait_us >= total * _NOTICED:
            for limit in _limits(supervisor, one):
                yield Advice(f"nagaya set {limit.name} {limit.field}={limit.twice}", "doubles the limit")
        elif row.cause == "device" and row is rows[0]:
            yield Advice("nagaya top", "shows who else uses the disk; no knob makes the disk itself faster")


def _against(supervisor: Supervisor, one: Supervised, other: Supervised) -> Iterator[Advice]:
    """What would have `one` wait less for `other`: knobs work where their paths in the tree part."""
    knobs, name = one.spec.disk, one.name
    if one.spec.tenant and one.spec.tenant != other.spec.tenant:
        knobs, name = supervisor.shares.tenants.get(one.spec.tenant).disk, f"@{one.spec.tenant}"
    theirs, whom = other.spec.disk, other.name
    if other.spec.tenant and one.spec.tenant != other.spec.tenant:
        theirs, whom = supervisor.shares.tenants.get(other.spec.tenant).disk, f"@{other.spec.tenant}"
    if knobs.weight < MOST_WEIGHT:
        weight = min(MOST_WEIGHT, knobs.weight * 2)
        yield Advice(f"nagaya set {name} disk.weight={weight}", f"doubles its share beside {whom}'s")
    if theirs.reservation_iops or theirs.reservation:
        yield Advice(f"nagaya set {whom} disk.reservation=none", f"{whom} is then served by weight alone")
    if one.spec.disk.latency_p99 is None:
        yield Advice(
            f"nagaya set {one.name} disk.latency_p99=5ms", "others give up throughput for its latency"
        )


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit that a machine can wait at: of whom, its field, its value, and twice that."""

    name: str
    field: str
    value: str
    twice: str


def _limits(supervisor: Supervisor, one: Supervised) -> list[_Limit]:
    """Each on the way from the machine's tenant to its disks."""
    places = [(one.name, "disk.limit", one.spec.disk)]
    places += [(one.name, f"disks[{n}].share.limit", disk.share) for n, disk in enumerate(one.spec.disks)]
    if one.spec.tenant:
        tenant = supervisor.shares.tenants.get(one.spec.tenant)
        places.append((f"@{tenant.name}", "disk.limit", tenant.disk))
    found = []
    for name, field, knobs in places:
        if knobs.limit_iops is not None:
            found.append(_Limit(name, field, f"{knobs.limit_iops}iops", f"{knobs.limit_iops * 2}iops"))
        if knobs.limit is not None:
            found.append(_Limit(name, field, format_rate(knobs.limit), format_rate(knobs.limit * 2)))
    return found
