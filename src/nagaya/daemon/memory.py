"""The memory broker at work: it looks at host and guests, asks `nagaya.resources.broker`, and does it.

Balloons keep their sizes in the plane, so a daemon that comes back reads them there and goes on. What is lost
with a daemon is for how long a machine has been idle: it counts as busy at first.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nagaya import validation
from nagaya.daemon.heldmemory import Held, HeldMemory
from nagaya.daemon.memorymoves import MemoryMoves
from nagaya.daemon.state import State
from nagaya.daemon.supervised import UP, Supervised
from nagaya.daemon.writer import Writer
from nagaya.errors import NagayaError, SpecError
from nagaya.knobs import Size
from nagaya.models.memory import MachineMemoryInfo, MemoryAnswer, MemoryMove
from nagaya.models.shares import Change, ChangesAnswer
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.resources import admission, relocation
from nagaya.resources.broker import Action, Broker, HostMemory, Kind, Plan
from nagaya.resources.hotmemory import present
from nagaya.resources.stalls import HOST
from nagaya.resources.workingset import GuestStats, MachineMemory

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

IDLE_S = 5.0  # between rounds while every machine could have all of its memory
CALM_S = 1.0  # while not
URGENT_S = 0.25  # while a machine is in need, or memory is short
FASTEST = 2**30  # bytes/s by which machines grow at most: a round must come before memory is gone
_FACT = "memory"

log = logging.getLogger("nagaya.daemon")


class MemorySettings(BaseModel):
    """What people set of the broker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    broker: bool = Field(True, description="whether it moves memory between machines")
    budget: Size | None = Field(
        None, gt=0, description="what machines may have in all; none: what the host can give"
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is the case at one moment."""

    at: float
    host: HostMemory
    machines: Sequence[MachineMemory]
    balloons: dict[str, BalloonStatus]
    held: dict[str, Held]
    ids: dict[str, str]


class Memory:
    """The broker of one daemon, its settings and its record of moves."""

    def __init__(self, supervisor: Supervisor, writer: Writer) -> None:
        self._supervisor = supervisor
        self._writer = writer
        self._broker = Broker()
        self.settings = MemorySettings.model_validate_json(writer.state.fact(_FACT) or "{}")
        self.moves = MemoryMoves(writer)
        self.held = HeldMemory(supervisor.parts)
        self._moved: Counter[str] = Counter(dict.fromkeys(get_args(Kind), 0))
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self.holders: Mapping[str, int] = {}  # what machines, by id, and the host hold beyond their shares

    async def mind(self) -> None:
        """Round after round: seldom while memory suffices, quickly while a machine is in need."""
        try:
            while True:
                pause = IDLE_S
                try:
                    pause = await self.round()
                except (NagayaError, OSError) as error:
                    log.warning("the memory broker cannot look: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):  # wait_for loses a cancellation that meets the event
                        await self._changed.wait()
                self._changed.clear()
        finally:
            self.held.close()
            await self.moves.close()

    def look_soon(self) -> None:
        """The next round comes at once: a machine began, whose guest may use all of its memory."""
        self._changed.set()

    async def round(self) -> float:
        """One round; returns the seconds until the next."""
        async with self._turn:
            try:
                return await self._round()
            finally:
                self.moves.save()

    async def _round(self) -> float:
        look = await self._look()
        self.moves.settle(look.at, look.machines)
        self.holders = {}
        if not look.balloons or not self.settings.broker:
            return IDLE_S
        plan = self._broker.decide(look.at, look.host, look.machines)
        if plan.short:
            self.holders = _holders(plan, look)
        for action in plan.actions:
            await self._carry_out(action, look)
        pause = _pause(plan, look)
        await self._ask_for_statistics(look, pause)
        return pause

    async def show(self) -> MemoryAnswer:
        """Memory of all machines, and what the broker would do now; nothing is done."""
        look = await self._look()
        plan = self._broker.copy().decide(look.at, look.host, look.machines)
        return MemoryAnswer(
            broker=self.settings.broker,
            budget=plan.budget,
            left=plan.left,
            reserve=plan.reserve,
            room=plan.room,
            short=plan.short,
            machines=[
                _info(one, look.balloons.get(one.name), plan, look.held[one.name]) for one in look.machines
            ],
            moves=[_move(action) for action in plan.actions],
            moved=dict(self._moved),
        )

    async def set(self, changed: Sequence[tuple[str, object]], *, dry_run: bool = False) -> ChangesAnswer:
        """Set `broker` or `budget`, in effect at once. Raises `SpecError`."""
        began = time.monotonic()
        before = self.settings.model_dump(mode="json")
        wanted = {**before, **{field: None if value == "none" else value for field, value in changed}}
        try:
            after = MemorySettings.model_validate(
                {key: one for key, one in wanted.items() if one is not None}
            )
        except ValidationError as error:
            problems = validation.problems(error, MemorySettings)
            raise SpecError("\n".join(map(str, problems))) from error
        now = after.model_dump(mode="json")
        changes = [
            Change(field, before[field], now[field], "live") for field in now if before[field] != now[field]
        ]
        if changes and not dry_run:
            await self._writer.call(State.set_fact, _FACT, json.dumps(now))
            self.settings = after
            self._changed.set()
        return ChangesAnswer("memory", changes, dry_run, time.monotonic() - began)

    async def _look(self) -> _Look:
        parts = self._supervisor.parts
        running = [one for one in self._supervisor.all() if one.row.state in UP]
        rows, counters, hot = await asyncio.gather(
            parts.plane.balloons(), parts.plane.counters(), parts.plane.hot_memory()
        )
        plugs = {row.id.partition("/")[0]: row for row in hot}
        self.held.keep([one.process.id.pid for one in running if one.process])
        used = await asyncio.to_thread(
            lambda: [(parts.usage(one.row.id)[0], self.held.of(one)) for one in running]
        )
        balloons = {row.id.partition("/")[0]: row for row in rows}
        reads: dict[str, int] = {}
        for counter in counters:
            machine = counter.id.partition("/")[0]
            reads[machine] = reads.get(machine, 0) + counter.read_bytes
        machines = [
            replace(
                _machine(one, balloons.get(one.row.id), plugs.get(one.row.id), both),
                reads=reads.get(one.row.id),
                stall_us=self._stall_us(one),
            )
            for one, both in zip(running, used, strict=True)
        ]
        by_name = {one.name: balloons[one.row.id] for one in running if one.row.id in balloons}
        held = {one.name: both[1] for one, both in zip(running, used, strict=True)}
        ids = {one.name: one.row.id for one in running}
        return _Look(time.monotonic(), self._host(), machines, by_name, held, ids)

    def _stall_us(self, one: Supervised) -> int | None:
        known = self._supervisor.pressure.of(one.row.id)
        return known.memory_stall_us if known else None

    def _host(self) -> HostMemory:
        _, pool = admission.pools(self._supervisor.capacity.policy)
        limit = int(pool.limit)
        budget = limit if self.settings.budget is None else min(limit, self.settings.budget)
        swap = relocation.swap_free()
        return HostMemory(budget, admission.available_memory(), ballast=int(pool.kept), swap=swap)

    async def _carry_out(self, action: Action, look: _Look) -> None:
        one = next(one for one in look.machines if one.name == action.machine)
        try:
            if action.kind == "page-out":
                await self._page_out(action)
            else:
                await self._supervisor.parts.plane.set_balloon(look.balloons[one.name].id, action.balloon)
        except (NagayaError, KeyError) as error:
            log.warning("%s: memory could not be moved: %s", action.machine, error)
            return
        move = _move(action)
        self.moves.add(move, look.at, one)
        self._moved[action.kind] += action.bytes
        log.info("%s %d MiB: %s: %s", action.kind, action.bytes >> 20, action.machine, action.reason)
        self._supervisor.events.publish({"event": "memory", **asdict(move)})

    async def _page_out(self, action: Action) -> None:
        """Slow, by a thread; the next round waits for it."""
        one = self._supervisor.get(action.machine)
        pid, group = one.require_process().id.pid, self._supervisor.parts.group(one.row.id)
        await asyncio.to_thread(relocation.page_out, pid, action.bytes, group)

    async def _ask_for_statistics(self, look: _Look, pause: float) -> None:
        """As often as there are rounds, and only told when that changes."""
        period = round(pause * 1000)
        for balloon in look.balloons.values():
            if balloon.stats_ms != period and balloon.driver:
                await self._supervisor.parts.plane.set_balloon(balloon.id, None, stats_ms=period)


def _holders(plan: Plan, look: _Look) -> dict[str, int]:
    """Bytes beyond a machine's share, by id; and what the host's programs took of all shares."""
    beyond = {look.ids[one.name]: one.holds - plan.targets[one.name].bytes for one in look.machines}
    return beyond | {HOST: look.host.budget - plan.budget}


def _pause(plan: Plan, look: _Look) -> float:
    if plan.urgent or plan.short or plan.actions:
        return URGENT_S
    if sum(one.most for one in look.machines) <= plan.budget and not any(
        one.balloon for one in look.machines
    ):
        return IDLE_S
    return min(CALM_S, max(URGENT_S, (plan.left - plan.reserve) / FASTEST))


def _machine(
    one: Supervised,
    balloon: BalloonStatus | None,
    plug: HotMemoryStatus | None,
    used: tuple[int | None, Held],
) -> MachineMemory:
    memory = one.spec.memory
    size = one.booted if plug is None else present(memory, plug.size, plug.plugged)
    limits = [] if memory.limit is None else [max(0, memory.limit - admission.OVERHEAD)]
    if plug is None and memory.size < size:
        limits.append(memory.size)
    return MachineMemory(
        one.name,
        size,
        floor=min(memory.reservation, size, *limits),
        weight=memory.weight,
        limit=min(limits, default=None),
        resident=used[1].machine,
        balloon=balloon.size if balloon else 0,
        actual=min(balloon.actual, size) if balloon else 0,
        stats=_stats(balloon),
        cpu_us=used[0],
    )


def _stats(balloon: BalloonStatus | None) -> GuestStats | None:
    if balloon is None or balloon.stats is None or balloon.stats_at is None:
        return None
    said = balloon.stats
    return GuestStats(
        at=balloon.stats_at / 1e9,
        free=said.free,
        available=said.available,
        caches=said.caches,
        swap_in=said.swap_in,
        swap_out=said.swap_out,
        major_faults=said.major_faults,
    )


def _info(one: MachineMemory, balloon: BalloonStatus | None, plan: Plan, held: Held) -> MachineMemoryInfo:
    target = plan.targets[one.name]
    return MachineMemoryInfo(
        name=one.name,
        size=one.size,
        floor=one.floor,
        limit=one.limit,
        weight=one.weight,
        resident=one.resident,
        balloon=one.balloon,
        actual=one.actual,
        reported=balloon.reported if balloon else 0,
        available=one.stats.available if one.stats else None,
        active=target.active,
        target=target.bytes,
        need=target.need,
        driver=balloon.driver if balloon else False,
        refuses=target.refuses,
        guest=held.guest,
        by_plane=held.by_plane,
        own=held.own,
        helpers=held.helpers,
    )


def _move(action: Action) -> MemoryMove:
    return MemoryMove(
        time.time(), action.machine, action.kind, action.bytes, action.reason, list(action.whom)
    )
