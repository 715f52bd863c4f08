"""The leases of this daemon: taken at a start, given back at an end, waited for in between.

The truth is the lock that the plane holds on the image's inode; it outlives the daemon. The row beside it
says whose it is, and makes refusals readable. Rows are decided on in memory, at once, and written behind; a
daemon that finds none for a machine that runs makes them anew (`reconcile`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from nagaya.daemon.events import Events
from nagaya.daemon.leaserows import LeaseChange, LeaseNote
from nagaya.daemon.neighbours import moment, with_names
from nagaya.daemon.state import State
from nagaya.daemon.writer import Writer
from nagaya.engines.procs import start_time_of
from nagaya.errors import ConflictError, NagayaError
from nagaya.models.history import JournalEntry
from nagaya.models.lease import LeaseWait
from nagaya.plane.config import BlkDevice, Device
from nagaya.plane.imagelock import Access
from nagaya.plane.storage import access_to
from nagaya.resources.leases import (
    Claim,
    Holder,
    Host,
    Lease,
    LeaseTable,
    Obstacle,
    Waiter,
    inode_of,
    new_id,
    this_host,
)

log = logging.getLogger("nagaya.daemon")

_VERBS = {Access.WRITER: "writes it", Access.READER: "reads it", Access.SHARED: "shares it"}
_PURPOSES = {Access.WRITER: "write", Access.READER: "read", Access.SHARED: "share"}


class Leases:
    """All leases and waiters. Changes are made in one step of the event loop, so that exactly one wins."""

    def __init__(self, writer: Writer, events: Events, clock: Callable[[], float] = time.time) -> None:
        self.host: Host = this_host()
        self.table = LeaseTable()
        self._writer = writer
        self._events = events
        self._clock = clock
        self._written: tuple[dict[str, Lease], dict[str, Waiter]] = ({}, {})
        self._notes: list[LeaseNote] = []
        self._changed = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()

    # -- machines

    async def take(self, machine_id: str, name: str, devices: Sequence[Device]) -> None:
        """The images of `devices` for a machine that starts, all or none. Raises `ConflictError`."""
        claims = await asyncio.to_thread(claims_of, devices)
        found = self.table.take(Holder(machine_id, name, self.host), claims, self._clock())
        if isinstance(found, Obstacle):
            error = self.refusal(name, found)
            self._note("refused", [found.claim], error.message)
            raise error
        self._changes("taken", name, claims)
        self._serve_queue()  # it may have given back what it had reserved

    async def confirm(self, machine_id: str, pid: int | None) -> None:
        """The plane's holder `pid` has locked the images of the machine."""
        if pid is not None:
            self._locked_by(machine_id, pid)
        self._write_behind()

    async def release(self, machine_id: str, name: str) -> None:
        """The machine has ended, and its devices are gone."""
        self._drop(self.table.of(machine_id), name)

    async def forget(self, machine_id: str) -> None:
        """The machine is deleted."""
        leases = self.table.of(machine_id)
        waiters = [one for one in self.table.queue() if one.holder.id == machine_id]
        for waiter in waiters:
            del self.table.waiters[waiter.id]
        if leases or waiters:
            self._drop(leases, leases[0].holder.name if leases else waiters[0].holder.name)

    def closed_disks(self, machine_id: str) -> frozenset[str]:
        """Disks that were taken away from a machine that runs."""
        return frozenset(lease.claim.disk for lease in self.table.of(machine_id) if lease.closed)

    async def close_disk(self, machine_id: str, name: str, disk: str) -> None:
        """The plane serves `disk` no more, the machine runs on."""
        leases = [lease for lease in self.table.of(machine_id) if lease.claim.disk == disk]
        for lease in leases:
            self.table.change(lease, closed=True)
        self._changes("closed", name, [lease.claim for lease in leases])
        self._serve_queue()
        await self.flush()

    # -- jobs of the daemon

    @contextlib.asynccontextmanager
    async def held(self, what: str, images: Mapping[str, Access]) -> AsyncIterator[None]:
        """Use `images` (path to access) for a job; `what` names it in refusals. Raises `ConflictError`."""
        pid = os.getpid()
        holder = Holder(f"job-{new_id()}", what, self.host, pid, start_time_of(pid))
        named: dict[str, Claim] = {}  # one for each image: a killed merge leaves two layers that are one file
        for path, access in images.items():
            claim = Claim(path, inode_of(path), access, "")
            if access is Access.WRITER or (claim.inode or path) not in named:
                named[claim.inode or path] = claim
        claims = list(named.values())
        found = self.table.take(holder, claims, self._clock())
        if isinstance(found, Obstacle):
            error = self.refusal(what, found)
            self._note("refused", [found.claim], error.message)
            raise error
        self._changes("taken", what, claims)
        self._write_behind()
        try:
            yield
        finally:
            self._drop(self.table.of(holder.id), what)

    async def explained(self, name: str, error: ConflictError) -> ConflictError:
        """A refusal of the plane, written down, and with the machine of another Nagaya that has the image."""
        path = error.facts.get("path")
        if "users" not in error.facts or not isinstance(path, str):
            return error
        full = await with_names(error)
        self._notes.append(LeaseNote(self._clock(), path, "refused", f"{name}: {full.message}"))
        self._write_behind()
        return full

    # -- waiting

    async def wait(
        self,
        machine_id: str,
        name: str,
        devices: Sequence[Device],
        seconds: float | None,
        first: bool = False,
    ) -> None:
        """Queue a machine that is down for its images, for `seconds`; it gets them at once if it can."""
        now = self._clock()
        claims = await asyncio.to_thread(claims_of, devices)
        deadline = None if seconds is None else now + seconds
        self.table.wait(Holder(machine_id, name, self.host), claims, now, deadline, first=first)
        self._changes("queued", name, claims)
        self._serve_queue()
        await self.flush()

    def waiting(self, machine_id: str, name: str) -> LeaseWait:
        """Where a machine is in the queue, or that it has its leases, or neither."""
        queue = self.table.queue()
        for position, waiter in enumerate(queue, 1):
            if waiter.holder.id == machine_id:
                obstacle = self.table.obstacle(machine_id, waiter.claims, waiter.rank)
                reason = "" if obstacle is None else self.refusal(name, obstacle).message
                return LeaseWait(name, machine_id, "waiting", position, waiter.since, waiter.deadline, reason)
        leases = [lease for lease in self.table.of(machine_id) if not lease.closed]
        if leases:
            since, until = leases[0].since, leases[0].expires_at
            return LeaseWait(name, machine_id, "granted", 0, since, None, "", until)
        return LeaseWait(name, machine_id, "ended", 0, 0.0, None, f"{name} does not wait for leases")

    async def change(self, seconds: float) -> None:
        """Return at the next change of any lease or waiter, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    async def give_up(self, machine_id: str) -> None:
        """The machine does not wait any more, and gives back what is reserved for it."""
        waiters = [one for one in self.table.queue() if one.holder.id == machine_id]
        for waiter in waiters:
            del self.table.waiters[waiter.id]
        reserved = [lease for lease in self.table.of(machine_id) if lease.reserved]
        if waiters or reserved:
            self._drop(reserved, (waiters[0].holder if waiters else reserved[0].holder).name)
            await self.flush()

    # -- what the hand-over needs

    def refusal(self, name: str, obstacle: Obstacle) -> ConflictError:
        """Why `name` cannot have an image: who has it, where and since when, and what to do."""
        claim = obstacle.claim
        disk = f" ({claim.disk})" if claim.disk else ""
        wish = f"{name} cannot {_PURPOSES[claim.access]} {claim.path}{disk}"
        if obstacle.lease is not None:
            return self._held_by(wish, name, claim, obstacle.lease)
        if obstacle.waiter is not None:
            other = obstacle.waiter
            return ConflictError(
                f"{wish}: {other.holder.name} waits for it since {moment(other.since)}",
                hint=f"`nagaya lease wait {name}` queues behind it",
                path=claim.path,
                waiter=other.holder.name,
                since=other.since,
            )
        return ConflictError(
            f"{wish}: another of its disks is the same image",
            hint="name an image once, or say `shared: true` of both disks",
            path=claim.path,
        )

    async def drop(self, leases: Sequence[Lease], event: str, detail: str) -> None:
        """End `leases` for a reason that is written down."""
        self._note(event, [lease.claim for lease in leases], detail)
        self._drop(leases, leases[0].holder.name if leases else "", event)
        await self.flush()

    async def put(self, lease: Lease, event: str, detail: str) -> None:
        """A lease that is not one of a machine of this daemon, new or renewed."""
        self.table.leases[lease.id] = lease
        self._note(event, [lease.claim], detail)
        self._changes(event, lease.holder.name, [lease.claim])
        await self.flush()

    async def note(self, event: str, claims: Iterable[Claim], detail: str) -> None:
        """Write `event` into the history of these images."""
        self._note(event, claims, detail)
        await self.flush()

    async def journal(self, path: str = "") -> list[JournalEntry]:
        """What happened to leases, of one image or all, oldest first."""
        await self.flush()
        return await self._writer.call(State.lease_journal, path)

    # -- the daemon's life

    def remember(self) -> None:
        """Know the rows of the last daemon."""
        self.table = self._writer.state.leases()
        self._written = (dict(self.table.leases), dict(self.table.waiters))

    async def reconcile(
        self, living: Mapping[str, tuple[str, Sequence[Device]]], known: frozenset[str], pid: int | None
    ) -> None:
        """Make the rows agree with what is: `living` are the machines (id to name and devices) that run or
        are being started, `known` all machines, `pid` is the plane's holder."""
        for lease in list(self.table.leases.values()):
            why = self._stale(lease, living, known)
            if why:
                log.warning("the lease of %s on %s has ended: %s", lease.holder.name, lease.claim.path, why)
                self._note("ended", [lease.claim], f"{lease.holder.name} had it: {why}")
                self.table.drop([lease])
        for waiter in self.table.queue():
            if waiter.holder.id not in known:
                del self.table.waiters[waiter.id]
        for machine_id, (name, devices) in living.items():
            await self._adopt(machine_id, name, devices)
            if pid is not None:
                self._locked_by(machine_id, pid)
        self._serve_queue()
        await self.flush()

    async def mind(self) -> None:
        """End what is overdue, as long as the daemon runs."""
        while True:
            next_event = self.table.next_event(self.host)
            await self.change(3600.0 if next_event is None else max(0.0, next_event - self._clock()) + 0.001)
            leases, waiters = self.table.overdue(self._clock(), self.host)
            for lease in leases:
                detail = f"{lease.holder.name} did not start in time"
                self._note("expired", [lease.claim], detail)
            for waiter in waiters:
                del self.table.waiters[waiter.id]
                self._note("gave up", waiter.claims[:1], f"{waiter.holder.name} waited long enough")
            if leases or waiters:
                self._drop(leases, (leases[0].holder if leases else waiters[0].holder).name, "expired")
                await self._try_flush()

    async def flush(self) -> None:
        """Write what has changed. Raises what `State` raises; it is tried again with the next change."""
        async with self._flushing:
            leases, waiters, notes = dict(self.table.leases), dict(self.table.waiters), tuple(self._notes)
            old_leases, old_waiters = self._written
            change = LeaseChange(
                tuple(one for key, one in leases.items() if old_leases.get(key) != one),
                tuple(key for key in old_leases if key not in leases),
                tuple(one for key, one in waiters.items() if old_waiters.get(key) != one),
                tuple(key for key in old_waiters if key not in waiters),
                notes,
            )
            if change != LeaseChange():
                await self._writer.call(State.save_leases, change)
                self._written = (leases, waiters)
                del self._notes[: len(notes)]

    async def close(self) -> None:
        """Finish writing."""
        await asyncio.gather(*self._writing)
        await self._try_flush()

    # -- inside

    def _held_by(self, wish: str, name: str, claim: Claim, lease: Lease) -> ConflictError:
        holder = lease.holder
        facts = {
            "path": claim.path,
            "holder": holder.name,
            "host": holder.host.name,
            "since": lease.since,
            "lease": lease.id,
        }
        away = holder.host.id != self.host.id
        what = "has it reserved" if lease.reserved and not away else _VERBS[lease.claim.access]
        message = f"{wish}: {holder.name} on host {holder.host.name} {what} since {moment(lease.since)}"
        if away:
            hint = "it is another host's; when its time to live is over, `nagaya lease break` can end it"
        else:
            hint = (
                f"stop {holder.name}, queue with `nagaya lease wait {name}`, or move it with "
                f"`nagaya lease transfer {claim.path} {name}`"
            )
        return ConflictError(message, hint=hint, **facts)

    def _stale(
        self, lease: Lease, living: Mapping[str, tuple[str, Sequence[Device]]], known: frozenset[str]
    ) -> str:
        """Why a lease cannot be true any more; "" if it can."""
        holder = lease.holder
        if holder.host.id != self.host.id:
            return ""
        if holder.host.boot_id != self.host.boot_id:
            return "the host has restarted"
        if lease.reserved and holder.id in known:
            return ""
        return "" if holder.id in living else "its holder does not run any more"

    async def _adopt(self, machine_id: str, name: str, devices: Sequence[Device]) -> None:
        """Rows for a machine that runs: it has the locks, so they are true."""
        closed = self.closed_disks(machine_id)
        claims = [one for one in await asyncio.to_thread(claims_of, devices) if one.disk not in closed]
        self.table.adopt(Holder(machine_id, name, self.host), claims, self._clock())

    def _locked_by(self, machine_id: str, pid: int) -> None:
        try:
            started = start_time_of(pid)
        except OSError:  # it has just ended; whoever minds the plane will notice
            return
        for lease in self.table.of(machine_id):
            if not lease.closed and (lease.holder.pid, lease.holder.start_time) != (pid, started):
                self.table.change(
                    lease, holder=replace(lease.holder, pid=pid, start_time=started), expires_at=None
                )

    def _drop(self, leases: Sequence[Lease], name: str, event: str = "released") -> None:
        self.table.drop(leases)
        self._changes(event, name, [lease.claim for lease in leases])
        self._serve_queue()
        self._write_behind()

    def _serve_queue(self) -> None:
        for waiter in self.table.grant(self._clock()):
            since = moment(waiter.since)
            self._note("granted", waiter.claims, f"{waiter.holder.name} waited since {since}")
            self._changes("granted", waiter.holder.name, waiter.claims)

    def _note(self, event: str, claims: Iterable[Claim], detail: str) -> None:
        now = self._clock()
        for claim in claims:
            self._notes.append(LeaseNote(now, claim.path, event, detail))
            log.info("lease of %s: %s: %s", claim.path, event, detail)

    def _changes(self, event: str, name: str, claims: Sequence[Claim]) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        paths = [claim.path for claim in claims]
        if paths:
            self._events.publish({"event": "lease", "action": event, "holder": name, "paths": paths})

    def _write_behind(self) -> None:
        task = asyncio.ensure_future(self._try_flush())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _try_flush(self) -> None:
        try:
            await self.flush()
        except NagayaError as error:
            log.error("leases could not be written: %s", error)


def claims_of(devices: Iterable[Device]) -> list[Claim]:
    """What the disks among `devices` need."""
    return [
        Claim(layer.path, inode_of(layer.path), access_to(device, index), device.id.partition("/")[2])
        for device in devices
        if isinstance(device, BlkDevice)
        for index, layer in enumerate(device.layers)
        if layer.path
    ]
