"""What the host has, keeps and has promised: admission of starts and of knobs, and the report of all of it.

CPUs and memory are added up here, in one step of the event loop, so that two starts at once cannot both have
the last of it. What disks and networks can do is measured by their arbiters (`shares`).
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from nagaya import validation
from nagaya.daemon.shares import Settings, differences
from nagaya.daemon.state import State
from nagaya.daemon.supervised import ALIVE, Supervised
from nagaya.daemon.writer import Writer
from nagaya.errors import ResourceError, SpecError, UsageError
from nagaya.models.host import HostReport, NodeReport, ResourceReport
from nagaya.models.shares import Change, ChangesAnswer
from nagaya.plane.shares import ArbiterStatus
from nagaya.resources import admission, reservations, topology
from nagaya.resources.admission import Ask, Pool
from nagaya.resources.placement import CpuMeter
from nagaya.resources.policy import HostPolicy
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

SAMPLE = 0.2  # s over which use is measured for a report
_FACT = "host_policy"


class Capacity:
    """Promises of CPUs and memory, and the policy by which they are made."""

    def __init__(self, supervisor: Supervisor, writer: Writer) -> None:
        self._supervisor = supervisor
        self._writer = writer
        self.policy = HostPolicy.model_validate(json.loads(writer.state.fact(_FACT) or "{}"))

    def admit(self, one: Supervised, spec: MachineSpec, before: MachineSpec | None = None) -> None:
        """Raise `ResourceError` with the arithmetic unless the host can keep what `spec` asks for.

        Beside it are all machines that are not down, and those that are ahead of it in the queue. `before` is
        what it runs with already. Between this and the step that makes it so, nothing may be awaited.
        """
        resumes = before is None and holds(one)  # a start that was cut short, or the machine's restart
        others = self._others(one, [] if resumes else self._supervisor.queue.ahead_of(one))
        mine = admission.asks(one.name, spec)
        held = (None, None) if before is None else admission.asks(one.name, before)
        for index, pool in enumerate(admission.pools(self.policy)):
            admission.admit(pool, mine[index], [asks[index] for asks in others], held[index])

    def admit_autostart(self, name: str, spec: MachineSpec, before: MachineSpec | None = None) -> None:
        """Raise `ResourceError` unless all that start with the host, this one among them, fit together.

        `before` is what the machine has been until now, if it was there.
        """
        if not spec.autostart:
            return
        others = [
            admission.asks(other.name, other.spec)
            for other in self._supervisor.all()
            if other.spec.autostart and other.name != name
        ]
        mine = admission.asks(name, spec)
        held = admission.asks(name, before) if before is not None and before.autostart else (None, None)
        for index, pool in enumerate(admission.pools(self.policy)):
            try:
                admission.admit(pool, mine[index], [asks[index] for asks in others], held[index])
            except ResourceError as error:
                error.message = f"autostart, of all machines that start with the host: {error.message}"
                error.hint = f"take autostart from another, or lower {pool.resource} of {name}"
                raise

    async def set(self, changed: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of the policy, all or none. What has been promised already stays promised."""
        began = time.monotonic()
        after = _with(self.policy, changed)
        found = differences(self.policy.to_json(), after.to_json())
        if found and not dry_run:
            await self._writer.call(State.set_fact, _FACT, json.dumps(after.to_json()))
            self.policy = after
            self._supervisor.queue.kick()
            self._supervisor.events.publish({"event": "host", "policy": after.to_json()})
        changes = [Change(field, *values, "live") for field, values in found.items()]
        return ChangesAnswer("host", changes, dry_run, time.monotonic() - began)

    def promised(self) -> list[tuple[Pool, float]]:
        """The host's CPUs and memory, and what of each is promised now."""
        held = [admission.asks(one.name, one.spec) for one in self._supervisor.all() if holds(one)]
        return [
            (pool, sum(admission.promised(pool, both[index]) for both in held))
            for index, pool in enumerate(admission.pools(self.policy))
        ]

    async def report(self) -> HostReport:
        """What the host has, what is promised, used and left. Takes as long as use is measured."""
        plane = self._supervisor.parts.plane
        meter, before = CpuMeter(), await plane.arbiters()
        await asyncio.sleep(SAMPLE)
        after = await plane.arbiters()
        machines = self._supervisor.all()
        busy = sum(meter.loads().values())
        used = (busy, admission.host_memory() - admission.available_memory())
        asks = [admission.asks(one.name, one.spec) for one in machines if holds(one)]
        rows = [
            _pool_report(pool, [both[index] for both in asks], used[index])
            for index, pool in enumerate(admission.pools(self.policy))
        ]
        return HostReport(
            hostname=socket.gethostname(),
            resources=[*rows, *_arbiter_reports(before, after)],
            nodes=[NodeReport(one.id, list(one.cpus), one.memory, one.free) for one in topology.nodes()],
            waiting=self._supervisor.queue.all(),
            policy=self.policy.to_json(),
            machines=len(machines),
            machines_running=sum(one.row.state in ALIVE for one in machines),
            pressure=await asyncio.to_thread(self._supervisor.pressure.host),
        )

    def _others(self, one: Supervised, ahead: Sequence[Supervised]) -> list[tuple[Ask, Ask]]:
        running = [other for other in self._supervisor.all() if other is not one and holds(other)]
        return [
            *(admission.asks(other.name, other.spec) for other in running),
            *(admission.asks(other.name, other.spec, waits=True) for other in ahead if other not in running),
        ]


def holds(one: Supervised) -> bool:
    """Whether a machine has what it was promised."""
    return one.row.state in ALIVE or one.returns


def _with(policy: HostPolicy, changed: Settings) -> HostPolicy:
    body = policy.to_json()
    for field, value in changed:
        part, _, name = field.partition(".")
        place = body.get(part)
        if not isinstance(place, dict) or name not in place:
            known = ", ".join(f"{part}.{name}" for part in body for name in ("overcommit", "kept"))
            raise UsageError(f"the host has no field {field!r}", hint=f"it has {known}")
        if value is None or (name == "kept" and value == "none"):  # what it keeps by itself
            del place[name]
        else:
            place[name] = value
    try:
        return HostPolicy.model_validate(body)
    except ValidationError as error:
        problems = validation.problems(error, HostPolicy)
        raise SpecError("\n".join(str(problem) for problem in problems)) from error


def _pool_report(pool: Pool, asks: Sequence[Ask], used: float) -> ResourceReport:
    return ResourceReport(
        resource="cpu" if pool.resource == "cpu" else "memory",
        name="",
        unit="CPUs" if pool.resource == "cpu" else "bytes",
        total=pool.total,
        kept=pool.kept,
        promised=sum(admission.promised(pool, ask) for ask in asks),
        visible=sum(ask.size for ask in asks),
        used=used,
        left=admission.left(pool, asks),
        overcommit=str(pool.overcommit),
    )


def _arbiter_reports(
    before: Iterable[ArbiterStatus], after: Iterable[ArbiterStatus]
) -> Iterable[ResourceReport]:
    earlier = {one.worker: one for one in before}
    for arbiter in after:
        base = earlier.get(arbiter.worker, arbiter)
        for unit, capacity in reservations.capacities(arbiter):
            if arbiter.resource == "network" and unit == "iops":
                continue
            used = max(0, _served(arbiter, unit) - _served(base, unit)) / SAMPLE
            given = reservations.promised(arbiter, unit)
            yield ResourceReport(
                resource=arbiter.resource,
                name=arbiter.worker.removeprefix("net-" if arbiter.resource == "network" else "disk-"),
                unit="iops" if unit == "iops" else "bytes/s",
                total=capacity or None,
                kept=0,
                promised=given,
                visible=0,
                used=used,
                left=max(0, capacity - given) if capacity else None,
                overcommit="fair",
            )


def _served(arbiter: ArbiterStatus, unit: str) -> int:
    """Requests, or bytes, that an arbiter has served to those below whom there is nobody."""
    inner: Mapping[str | None, object] = {node.parent: None for node in arbiter.nodes}
    leaves = [node for node in arbiter.nodes if node.id not in inner]
    return sum(node.dispatched if unit == "iops" else node.bytes for node in leaves)
