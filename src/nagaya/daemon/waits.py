"""`why`: what a machine waited for, in words, and which knob would change it (docs/arbitration.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nagaya.daemon import stallwords
from nagaya.knobs import DiskKnobs, NetworkKnobs
from nagaya.models.waits import Advice, WaitInfo, WaitResource, WhyAnswer
from nagaya.plane.shares import ArbiterStatus, Objective, Resource, WaitRow
from nagaya.spec import MachineSpec, Tenant
from nagaya.units import format_rate, format_time, human_time

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

KINDS: tuple[Resource, ...] = ("disk", "network")  # those with requests and an arbiter
STALLS: tuple[WaitResource, ...] = ("cpu", "memory")
_NOTICED = 0.05  # of the waiting: what is less gets no advice

Cause = Literal["machine", "device", "limit"]


async def matrix(supervisor: Supervisor, since: int) -> list[WaitInfo]:
    """Who waited for whom in the last `since` seconds, all machines, the longest first."""
    name = supervisor.shares.names()
    rows: list[WaitRow | WaitInfo] = [*await supervisor.parts.plane.waits(since)]
    rows += await supervisor.pressure.rows(since)
    found = [
        WaitInfo(name(row.waiter), row.cause, name(row.whom), row.wait_us, row.requests, row.resource)
        for row in rows
    ]
    return sorted(found, key=lambda row: -row.wait_us)


async def why(
    supervisor: Supervisor, machine: str, since: int, resource: WaitResource | None = None
) -> WhyAnswer:
    """What one machine waited for, at one resource or at all. Raises `NotFoundError`."""
    one = supervisor.get(machine)
    rows = [row for row in await matrix(supervisor, since) if row.waiter.partition("/")[0] == one.name]
    waited = [row for row in rows if resource in (None, row.resource)]
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
        words=[*_words(supervisor, one, rows, since), *_objective_words(one.spec, objective)],
        advice=[
            *(advice for kind in KINDS for advice in _advice(supervisor, one, kind, _of(rows, kind))),
            *(advice for kind in STALLS for advice in stallwords.advice(one, _noticed(_of(rows, kind)))),
        ],
    )


def merged(rows: Sequence[WaitInfo], name: str) -> list[WaitInfo]:
    """One row for each cause and machine, whichever of its parts it was about; the longest first."""
    sums: dict[tuple[Cause, str, WaitResource], tuple[int, int]] = {}
    for row in rows:
        whom = row.whom if row.whom.startswith("%") else row.whom.partition("/")[0]
        key = (row.cause, whom, row.resource)
        wait_us, requests = sums.get(key, (0, 0))
        sums[key] = (wait_us + row.wait_us, requests + row.requests)
    found = [WaitInfo(name, cause, whom, *both, kind) for (cause, whom, kind), both in sums.items()]
    return sorted(found, key=lambda row: -row.wait_us)


def span(seconds: int) -> str:
    """`the last minute`, `the last 5 minutes`, `the last 90 seconds`."""
    for unit, factor in (("hour", 3600), ("minute", 60), ("second", 1)):
        if seconds % factor == 0:
            count = seconds // factor
            return f"the last {unit}" if count == 1 else f"the last {count} {unit}s"
    return f"the last {seconds} seconds"


def _of(rows: Sequence[WaitInfo], kind: WaitResource) -> list[WaitInfo]:
    return [row for row in rows if row.resource == kind]


def _noticed(rows: Sequence[WaitInfo]) -> list[WaitInfo]:
    total = sum(row.wait_us for row in rows)
    return [row for row in rows if row.wait_us >= total * _NOTICED]


def _words(supervisor: Supervisor, one: Supervised, rows: Sequence[WaitInfo], since: int) -> Iterator[str]:
    if not any(row.wait_us for row in rows):
        yield f"{one.name} waited for nobody in {span(since)}."
    for kind in KINDS:
        here = _of(rows, kind)
        total, requests = sum(row.wait_us for row in here), sum(row.requests for row in here)
        if not total:
            continue
        things = "requests" if kind == "disk" else "frames"
        together = total / since / 1e6
        aside = f" ({together:.1f} {things} at a time)" if together > 1 else ""
        yield (
            f"{one.name} waited {human_time(total)} at its {kind}s in {span(since)}{aside}: "
            f"{requests} {things}, {human_time(total / max(1, requests))} each."
        )
        limits = _limits(supervisor, one, kind)
        for row in here:
            yield f"{human_time(row.wait_us)} ({row.wait_us / total:.0%}) {_because(row, limits)}"
    for stall in STALLS:
        yield from stallwords.words(one, _of(rows, stall), since, span(since))


def _because(row: WaitInfo, limits: Sequence[_Limit]) -> str:
    if row.cause == "limit":
        named = ", ".join(f"{limit.name} {limit.field}={limit.value}" for limit in limits)
        return f"at its limit ({named})." if named else "at a limit that it no longer has."
    if row.cause == "device":
        what, work = ("uplink", "frames") if row.resource == "network" else ("disk", "requests")
        return f"on the {what} itself, which was busy with its own {work}."
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


def _advice(
    supervisor: Supervisor, one: Supervised, kind: Resource, rows: Sequence[WaitInfo]
) -> Iterator[Advice]:
    total = sum(row.wait_us for row in rows)
    others = [row.whom for row in rows if row.cause == "machine" and row.wait_us >= total * _NOTICED]
    machines = [other for name in others for other in supervisor.all() if other.name == name]
    if machines:
        yield from _against(supervisor, one, machines[0], kind)
    elif any(name.startswith("%") for name in others):
        yield Advice("nagaya operation list", "shows the host's work; it has a low weight, and ends")
    for row in rows:
        if row.cause == "limit" and row.wait_us >= total * _NOTICED:
            for limit in _limits(supervisor, one, kind):
                yield Advice(f"nagaya set {limit.name} {limit.field}={limit.twice}", "doubles the limit")
        elif row.cause == "device" and row is rows[0]:
            yield _alone_with(one.spec, kind)


def _alone_with(spec: MachineSpec, kind: Resource) -> Advice:
    """What is left to be said to a machine that waits for nobody but itself."""
    if kind == "disk":
        return Advice("nagaya top", "shows who else uses the disk; no knob makes the disk itself faster")
    network = spec.nics[0].network if spec.nics else "default"
    return Advice(
        f"nagaya network show {network}", "shows the rate of the uplink, which it uses up by itself"
    )


def _against(supervisor: Supervisor, one: Supervised, other: Supervised, kind: Resource) -> Iterator[Advice]:
    """What would have `one` wait less for `other`: knobs work where their paths in the tree part."""
    tenants = supervisor.shares.tenants
    knobs, name = _knobs(one.spec, kind), one.name
    if one.spec.tenant and one.spec.tenant != other.spec.tenant:
        knobs, name = _knobs(tenants.get(one.spec.tenant), kind), f"@{one.spec.tenant}"
    theirs, whom = _knobs(other.spec, kind), other.name
    if other.spec.tenant and one.spec.tenant != other.spec.tenant:
        theirs, whom = _knobs(tenants.get(other.spec.tenant), kind), f"@{other.spec.tenant}"
    if knobs.weight < stallwords.MOST_WEIGHT:
        weight = min(stallwords.MOST_WEIGHT, knobs.weight * 2)
        yield Advice(f"nagaya set {name} {kind}.weight={weight}", f"doubles its share beside {whom}'s")
    if theirs.reservation or (isinstance(theirs, DiskKnobs) and theirs.reservation_iops):
        yield Advice(f"nagaya set {whom} {kind}.reservation=none", f"{whom} is then served by weight alone")
    if kind == "disk" and one.spec.disk.latency_p99 is None:
        yield Advice(
            f"nagaya set {one.name} disk.latency_p99=5ms", "others give up throughput for its latency"
        )


def _knobs(of: MachineSpec | Tenant, kind: Resource) -> DiskKnobs | NetworkKnobs:
    return of.disk if kind == "disk" else of.network


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit that a machine can wait at: of whom, its field, its value, and twice that."""

    name: str
    field: str
    value: str
    twice: str


def _limits(supervisor: Supervisor, one: Supervised, kind: Resource) -> list[_Limit]:
    """Each on the way from the machine's tenant to its disks, or NICs."""
    places: list[tuple[str, str, DiskKnobs | NetworkKnobs]]
    places = [(one.name, f"{kind}.limit", _knobs(one.spec, kind))]
    if kind == "disk":
        places += [(one.name, f"disks[{n}].share.limit", disk.share) for n, disk in enumerate(one.spec.disks)]
    else:
        nics = enumerate(one.spec.nics or ())
        places += [(one.name, f"nics[{n}].share.limit", nic.share) for n, nic in nics]
    if one.spec.tenant:
        tenant = supervisor.shares.tenants.get(one.spec.tenant)
        places.append((f"@{tenant.name}", f"{kind}.limit", _knobs(tenant, kind)))
    found = []
    for name, field, knobs in places:
        if isinstance(knobs, DiskKnobs) and knobs.limit_iops is not None:
            found.append(_Limit(name, field, f"{knobs.limit_iops}iops", f"{knobs.limit_iops * 2}iops"))
        if knobs.limit is not None:
            found.append(_Limit(name, field, format_rate(knobs.limit), format_rate(knobs.limit * 2)))
    return found
