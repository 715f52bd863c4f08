"""`nagaya plan`: how many machines more fit this host, what breaks first, and which could share one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nagaya.daemon import whatif
from nagaya.daemon.capacity import holds
from nagaya.daemon.supervised import Supervised
from nagaya.errors import ConflictError
from nagaya.models.plan import ConsolidationAnswer, PlanAnswer, PlanGroup, PlanRoom, PlanRow
from nagaya.plane.demand import Device
from nagaya.plane.shares import ArbiterStatus
from nagaya.resources import admission, planning
from nagaya.resources.demand import Hour
from nagaya.resources.planning import Day, Load, Room
from nagaya.units import human_size, human_time

if TYPE_CHECKING:
    from nagaya.daemon.daemon import Daemon

LIMITS = [
    "What was not asked for while it was recorded is not foreseen; an hour never seen counts as the busiest.",
    "CPUs, memory and networks are added up, peaks as if they met; what waiting for a CPU does to latencies"
    " is not modelled.",
    "Disks are replayed with small requests as they came: neighbours that the arbiter merges are not merged.",
    "Beyond what was at a disk when it was measured, its answer is extrapolated.",
]
_UNITS = {"cpu": "CPUs", "memory": "bytes"}


@dataclass(frozen=True, slots=True)
class _Known:
    """All that a plan is made of."""

    hours: Mapping[str, Sequence[Hour]]  # by machine id
    patterns: Mapping[str, whatif.Recorded]
    devices: Mapping[str, Device]
    arbiters: Sequence[ArbiterStatus]
    machines: Sequence[Supervised]

    def load(self, one: Supervised) -> Load:
        """What one machine asks for, in the units of the rooms."""
        days = planning.days_of(self.hours.get(one.row.id, ()))
        found: dict[str, Day] = {}
        if days:
            found["cpu"] = tuple(value / 1000 for value in days["cpu"])
            found["memory"] = days["memory"]
            found["iops"] = days["iops"]
            for nic in (one.spec.nics or ())[:1]:
                found[f"network:{nic.network}"] = days["sent"]
        return Load(one.name, found)


async def plan(daemon: Daemon, like: str, *, most: int, p99_us: int | None) -> PlanAnswer:
    """How many machines more like `like` fit. Raises `ConflictError` if nothing was recorded of it."""
    one = daemon.supervisor.get(like)
    known = await _known(daemon)
    if not known.hours.get(one.row.id):
        raise ConflictError(
            f"nothing has been recorded of {one.name} yet",
            hint="let it run for a minute with its usual load, then ask again",
            machine=one.name,
        )
    rooms = _rooms(daemon, known, one)
    bounded = [room.fits for room in rooms if room.fits is not None]
    room_for = max(0, min([most, *bounded]))
    fits, rows, scenes = room_for, list[PlanRow](), _scenes(known, one)
    slow: whatif.Scene | None = None
    for scene in scenes:
        found, seen = await asyncio.to_thread(whatif.search, scene, max(fits, 1), p99_us)
        rows += [_named(daemon, row) for row in seen]
        if found < fits:
            fits, slow = max(0, found), scene
    tight = next((room for room in rooms if room.fits is not None and room.fits <= fits), None)
    breaks = f"disk {slow.worker}" if slow else f"{tight.resource} {tight.name}".strip() if tight else ""
    disk = slow.worker if slow else scenes[0].worker if scenes else ""
    shown = [row for row in rows if row.disk == disk]
    words = [*_words(one.name, fits, most, breaks), *_reason(slow, tight, shown, fits, p99_us)]
    words += [text for scene in scenes for text in _check(one.name, scene, rows)]
    if not scenes:
        words.append("Nothing has been recorded of its disks yet: they are left out.")
    return PlanAnswer(one.name, fits, breaks, most, rooms, rows, words, LIMITS)


async def consolidate(daemon: Daemon) -> ConsolidationAnswer:
    """On how many hosts like this one all machines would fit of which something is known."""
    known = await _known(daemon, running=False)
    loads = [known.load(one) for one in known.machines]
    rooms = [Room(pool.resource, pool.limit) for pool in admission.pools(daemon.supervisor.capacity.policy)]
    iops = max((one.capacity_iops for one in known.arbiters if one.resource == "disk"), default=0)
    rooms += [Room("iops", iops)] if iops else []
    rates = {
        one.worker.removeprefix("net-"): one.capacity for one in known.arbiters if one.resource != "disk"
    }
    rooms += [Room(f"network:{name}", rate) for name, rate in sorted(rates.items()) if rate]
    groups, large = planning.packed([one for one in loads if one.days], rooms)
    return ConsolidationAnswer(
        groups=[PlanGroup(list(one.names), dict(one.peaks), dict(one.hours)) for one in groups],
        too_large=large,
        unknown=[one.name for one in loads if not one.days],
        rooms={room.key: room.limit for room in rooms},
        words=_packed_words(loads, groups),
        limits=[
            *LIMITS[:2],
            "Of disks only their requests a second are added up. Try the result with --like.",
        ],
    )


async def _known(daemon: Daemon, *, running: bool = True) -> _Known:
    machines = [one for one in daemon.supervisor.all() if holds(one) or not running]
    every = [one.row.id for one in daemon.supervisor.all()]
    hours, patterns, devices = await daemon.demand.call(
        lambda store: (
            {one: store.hours(one) for one in every},
            {one: store.patterns(one) for one in every},
            store.devices(),
        )
    )
    return _Known(hours, patterns, devices, await daemon.parts.plane.arbiters(), machines)


def _rooms(daemon: Daemon, known: _Known, one: Supervised) -> list[PlanRoom]:
    """Promises and use of CPUs and memory, and the use of the networks of the machine."""
    mine, others = known.load(one), [known.load(other) for other in known.machines]
    rooms = []
    for index, pool in enumerate(admission.pools(daemon.supervisor.capacity.policy)):
        asks = [admission.asks(other.name, other.spec)[index] for other in known.machines]
        each = admission.promised(pool, admission.asks(one.name, one.spec)[index])
        given = sum(admission.promised(pool, ask) for ask in asks)
        room = Room(pool.resource, pool.limit)
        rooms.append(_room(room, "promised", planning.constant(given), planning.constant(each)))
        used = planning.added(other.day(pool.resource) for other in others)
        rooms.append(_room(room, "used", used, mine.day(pool.resource)))
    for arbiter in known.arbiters:
        key = f"network:{arbiter.worker.removeprefix('net-')}"
        if arbiter.resource == "network" and arbiter.capacity and key in mine.days:
            used = planning.added(other.day(key) for other in others)
            rooms.append(_room(Room(key, arbiter.capacity), "", used, mine.day(key)))
    return rooms


def _room(room: Room, name: str, base: Day, each: Day) -> PlanRoom:
    resource, _, network = room.key.partition(":")
    fits = planning.how_many(room, base, each)
    _, hour = planning.peak(planning.with_more(base, each, max(1, min(fits, planning.MOST))))
    bounds = any(each)
    return PlanRoom(
        resource=resource,
        name=network or name,
        unit=_UNITS.get(resource, "bytes/s"),
        limit=room.limit,
        used=base[hour],
        each=each[hour],
        hour=hour,
        fits=max(0, fits) if bounds else None,
    )


def _scenes(known: _Known, one: Supervised) -> list[whatif.Scene]:
    """Each disk of the host that the machine's disks are on."""
    running = {other.row.id for other in known.machines} | {one.row.id}
    machines = {machine: found for machine, found in known.patterns.items() if machine in running}
    objectives = {
        other.row.id: other.spec.disk.latency_p99
        for other in (*known.machines, one)
        if other.spec.disk.latency_p99 is not None
    }
    found = [
        whatif.scene_of(place, machines, one.row.id, known.arbiters, objectives)
        for place in sorted(known.devices.items())
    ]
    return [scene for scene in found if scene is not None]


def _named(daemon: Daemon, row: PlanRow) -> PlanRow:
    """With the name of the machine where its id was."""
    machine, slash, disk = row.worst.partition("/")
    names = {one.row.id: one.name for one in daemon.supervisor.all()}
    return replace(row, worst=f"{names.get(machine, machine)}{slash}{disk}")


def _words(name: str, fits: int, most: int, breaks: str) -> Iterable[str]:
    machines = "machine" if fits == 1 else "machines"
    if not breaks:
        yield f"{fits} {machines} more like {name} fit; more than {most} were not looked at."
    elif fits:
        yield f"{fits} {machines} more like {name} fit. With one more, {breaks} breaks first."
    else:
        yield f"No machine more like {name} fits: {breaks} breaks."


def _reason(
    slow: whatif.Scene | None,
    tight: PlanRoom | None,
    rows: Sequence[PlanRow],
    fits: int,
    p99_us: int | None,
) -> Iterable[str]:
    now = next((row for row in rows if row.more == 0), None)
    if slow is not None:
        late = next((row for row in rows if row.more > fits and whatif.broken(row)), None) or now
        if late is not None:
            why = "as asked for" if p99_us else "its objective or three times what it is now"
            yield (
                f"At {slow.hour:02}:00 UTC, with {late.more} more, 99 of 100 requests of {late.worst} take up"
                f" to {human_time(late.worst_p99_us)}; {human_time(late.worst_bound_us)} is the bound: {why}."
            )
    elif tight is not None:
        what = f"{_amount(tight, tight.used)} are {tight.name or 'used'}"
        when = "Now" if tight.name == "promised" else f"At {tight.hour:02}:00 UTC"
        yield (
            f"{when} {what}, each machine adds {_amount(tight, tight.each)},"
            f" there are {_amount(tight, tight.limit or 0)}."
        )
    then = next((row for row in rows if row.more == fits), None)
    if now is not None and then is not None and fits:
        yield (
            f"Its disks' p99 is {human_time(now.p99_us)} now and {human_time(then.p99_us)} then,"
            f" with {then.iops:.0f} IOPS in all instead of {now.iops:.0f}."
        )


def _check(name: str, scene: whatif.Scene, rows: Sequence[PlanRow]) -> Iterable[str]:
    """How well the replay meets what was measured, where there are enough requests to say so."""
    enough = [one for one in scene.like if whatif.rate(one) * whatif.SECONDS >= whatif.ANSWERS]
    replayed = next(row.p99_us for row in rows if row.more == 0 and row.disk == scene.worker)
    if enough and replayed:
        measured = max(one["p99_us"] for one in enough)
        yield (
            f"Replayed as it was recorded, p99 of {name}'s disks is {human_time(replayed)};"
            f" {human_time(measured)} was measured."
        )


def _packed_words(loads: Sequence[Load], groups: Sequence[planning.Group]) -> list[str]:
    count = sum(len(group.names) for group in groups)
    hosts = "host" if len(groups) == 1 else "hosts"
    words = [f"{count} machines fit {len(groups)} {hosts} like this one."]
    apart = sum(max(one.day("cpu")) for one in loads)
    together = sum(group.peaks.get("cpu", 0) for group in groups)
    if together < apart:
        words.append(
            f"Their peaks add up to {apart:.2f} CPUs, but do not meet: together {together:.2f} at a time."
        )
    return words


def _amount(room: PlanRoom, value: float) -> str:
    if room.unit == "CPUs":
        return f"{value:.2f} CPUs"
    return human_size(value) + ("/s" if room.unit == "bytes/s" else "")
