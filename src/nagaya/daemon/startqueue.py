"""Machines that wait for room on the host, to be started in the order in which they came.

What waits counts as promised to those behind it: who comes later gets only what the ones ahead leave. The
queue is a fact of the state, so the next daemon goes on with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from nagaya.daemon.state import State
from nagaya.daemon.supervised import DOWN, Supervised
from nagaya.daemon.writer import Writer
from nagaya.errors import NagayaError, NotFoundError, ResourceError
from nagaya.models.host import StartWait
from nagaya.models.machine import MachineState
from nagaya.resources import reservations

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

RECHECK = 5.0  # s between two looks at disks and networks, which measure themselves again and again
PAUSE_MOST = 60.0  # s between attempts to start one of which only the start itself finds out
_FACT = "start_queue"
_REMEMBERED = 256  # of those that have left it: their clients ask once more how it ended

log = logging.getLogger("nagaya.daemon")


@dataclass(slots=True)
class _Entry:
    """One that waits. Times are seconds of the epoch: they outlive the daemon, and a reboot."""

    machine: str
    since: float
    deadline: float | None
    reason: str
    blocked: dict[str, object] = field(default_factory=dict)  # facts of the last refusal
    pause: float = 0.0  # s between the last two attempts that failed
    not_before: float = 0.0  # the next one


class StartQueue:
    """Those that wait, the next one first."""

    def __init__(self, supervisor: Supervisor, writer: Writer) -> None:
        self._supervisor = supervisor
        self._writer = writer
        self._entries = [_Entry(**entry) for entry in json.loads(writer.state.fact(_FACT) or "[]")]
        self._ended: dict[str, StartWait] = {}
        self._kicked = asyncio.Event()
        self._changed = asyncio.Event()

    def kick(self) -> None:
        """Something has changed that may make room."""
        if self._entries:
            self._kicked.set()

    def ahead_of(self, one: Supervised) -> list[Supervised]:
        """Those that are to have room before `one` does: all that wait, unless it waits itself."""
        known = {other.row.id: other for other in self._supervisor.all()}
        found = []
        for entry in self._entries:
            if entry.machine == one.row.id:
                break
            if entry.machine in known:
                found.append(known[entry.machine])
        return found

    def all(self) -> list[StartWait]:
        """Those that wait, the next one first."""
        known = {one.row.id for one in self._supervisor.all()}  # who is deleted leaves at the next look
        waiting = (entry for entry in self._entries if entry.machine in known)
        return [self._view(number, entry) for number, entry in enumerate(waiting, 1)]

    def waits(self, one: Supervised) -> str:
        """What a machine waits for, in words; "" if it does not wait."""
        entry = self._entry(one.row.id)
        return "" if entry is None else entry.reason

    async def start(self, name: str, seconds: float | None) -> StartWait:
        """Start a machine, or let it wait for room for `seconds`, or for ever. It keeps its place.

        Raises `ResourceError` at once for what this host never has.
        """
        one = self._supervisor.get(name)
        entry = self._entry(one.row.id)
        deadline = None if seconds is None else time.time() + seconds
        if entry is not None:
            entry.deadline = deadline
            await self._save()
            self._kicked.set()
            return self.place(one)
        try:
            await self._supervisor.start(name)
        except ResourceError as error:
            async with one.lock:
                if not await self.put(one, error, deadline):
                    raise
        return self.place(one)

    async def launch(self, one: Supervised, restarts: int) -> None:
        """A start that nobody is there to repeat: without room on the host it waits. Its lock is held."""
        try:
            await self._supervisor.starts.launch(one, restarts)
        except ResourceError as error:
            if not await self.put(one, error):
                raise

    async def put(self, one: Supervised, error: ResourceError, deadline: float | None = None) -> bool:
        """Let a machine wait that was refused with `error`; its lock is held. False: waiting is no use."""
        if not _may_pass(error) or one.row.state not in DOWN or self._entry(one.row.id) is not None:
            return False
        self._ended.pop(one.row.id, None)
        entry = _Entry(one.row.id, time.time(), deadline, error.message, dict(error.facts))
        self._entries.append(entry)
        await self._save()
        await self._settle(one, error)
        self._tell(one, self.place(one))
        self._kicked.set()
        return True

    def place(self, one: Supervised) -> StartWait:
        """A machine's place in the queue, or how its waiting ended."""
        for number, entry in enumerate(self._entries, 1):
            if entry.machine == one.row.id:
                return self._view(number, entry)
        if one.row.state not in DOWN:
            return StartWait(one.name, one.row.id, "started", 0, 0.0, None, "it runs")
        nothing = StartWait(one.name, one.row.id, "ended", 0, 0.0, None, f"{one.name} does not wait for room")
        return self._ended.get(one.row.id, nothing)

    async def waiting(self, name: str, seconds: float) -> StartWait:
        """The same, as soon as it changes or after `seconds`."""
        one = self._supervisor.get(name)
        before = self.place(one)
        deadline = time.monotonic() + seconds
        while before.state == "waiting" and self.place(one) == before:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        return self.place(one)

    async def leave(self, one: Supervised, how: str = "it was taken out of the queue") -> bool:
        """A machine does not wait any more. Whether it did."""
        entry = self._entry(one.row.id)
        if entry is None:
            return False
        await self._end(one, entry, "ended", how)
        return True

    async def mind(self) -> None:
        """Start what there is room for, as it comes, and end what has waited long enough."""
        while True:
            now = time.time()
            deadlines = [entry.deadline for entry in self._entries if entry.deadline is not None]
            patience = min([RECHECK, *(max(0.0, deadline - now) for deadline in deadlines)])
            try:
                async with asyncio.timeout(patience if self._entries else None):
                    await self._kicked.wait()
            except TimeoutError:
                pass
            self._kicked.clear()
            for entry in list(self._entries):
                try:
                    await self._try(entry)
                except NagayaError as error:
                    log.warning("machine %s, which waits for room: %s", entry.machine, error)

    async def _try(self, entry: _Entry) -> None:
        try:
            one = self._supervisor.get(entry.machine)
        except NotFoundError:
            self._entries.remove(entry)
            await self._save()
            return
        if entry.deadline is not None and time.time() >= entry.deadline:
            await self._end(one, entry, "ended", f"it has waited long enough: {entry.reason}")
            return
        if one.row.state in DOWN and time.time() >= entry.not_before and await self._has_room(one, entry):
            try:
                await self._supervisor.start(entry.machine)
            except ResourceError as error:
                await self._failed(one, entry, error)
                return
            except (NagayaError, OSError, ValueError) as error:
                await self._end(one, entry, "ended", f"it could not be started: {error}")
                return
        if one.row.state not in DOWN:
            await self._end(one, entry, "started", "it runs")

    async def _has_room(self, one: Supervised, entry: _Entry) -> bool:
        """As far as that is known without its devices; a start finds out."""
        try:
            self._supervisor.capacity.admit(one, one.spec)
        except ResourceError as error:
            self._refused(one, entry, error)
            return False
        worker, unit, need = (entry.blocked.get(fact) for fact in ("worker", "unit", "need"))
        for arbiter in await self._supervisor.parts.plane.arbiters() if worker else ():
            if arbiter.worker == worker and unit in ("iops", "bytes") and isinstance(need, int):
                capacity = dict(reservations.capacities(arbiter))[unit]
                return capacity == 0 or reservations.promised(arbiter, unit) + need <= capacity
        return True

    async def _failed(self, one: Supervised, entry: _Entry, error: ResourceError) -> None:
        """Only the start itself found out that there is no room: try again later, and ever later."""
        if not _may_pass(error):
            await self._end(one, entry, "ended", f"it could not be started: {error}")
            return
        entry.pause = min(PAUSE_MOST, 2 * entry.pause or RECHECK)
        entry.not_before = time.time() + entry.pause
        self._refused(one, entry, error)
        async with one.lock:
            await self._settle(one, error)
        await self._save()

    async def _settle(self, one: Supervised, error: ResourceError) -> None:
        """A machine that waits is stopped, and has not failed."""
        if one.row.state is MachineState.FAILED:  # by that very refusal
            await self._supervisor.move(one, MachineState.STOPPED, "waits for room", error.message, cause="")
        else:
            await self._supervisor.note(one, "waits for room", error.message)
            self._supervisor.publish(one)

    def _refused(self, one: Supervised, entry: _Entry, error: ResourceError) -> None:
        entry.blocked = dict(error.facts)
        if entry.reason != error.message:
            entry.reason = error.message
            self._tell(one, self.place(one))

    async def _end(
        self, one: Supervised, entry: _Entry, state: Literal["started", "ended"], how: str
    ) -> None:
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self._ended[one.row.id] = StartWait(one.name, one.row.id, state, 0, entry.since, entry.deadline, how)
        while len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        await self._save()
        if state == "ended":
            await self._supervisor.note(one, "waits no more", how)
            self._supervisor.publish(one)
        self._tell(one, self._ended[one.row.id])
        self.kick()

    def _tell(self, one: Supervised, place: StartWait) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._supervisor.events.publish(
            {"event": "queue", "id": one.row.id, "name": one.name, **asdict(place)}
        )

    def _entry(self, machine_id: str) -> _Entry | None:
        return next((entry for entry in self._entries if entry.machine == machine_id), None)

    def _view(self, number: int, entry: _Entry) -> StartWait:
        name = self._supervisor.get(entry.machine).name
        return StartWait(name, entry.machine, "waiting", number, entry.since, entry.deadline, entry.reason)

    async def _save(self) -> None:
        text = json.dumps([asdict(entry) for entry in self._entries])
        await self._writer.call(State.set_fact, _FACT, text)


def _may_pass(error: ResourceError) -> bool:
    """Whether what was refused may fit once others have gone."""
    facts = error.facts
    if "room" in facts:
        return float(str(facts["need"])) <= float(str(facts["most"]))
    return "worker" in facts and int(str(facts["need"])) <= int(str(facts["capacity"]))
