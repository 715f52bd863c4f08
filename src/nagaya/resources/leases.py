"""Who may use which image: exclusive writer, many readers, or sharers, and who waits for them.

A table of facts without any input or output; `nagaya.daemon.leases` keeps it on disk and feeds it. Times are
seconds of the epoch and come from the caller. Whoever asks gets all that it asks for or nothing, so nobody
holds one image while it waits for another: there is no deadlock. Waiters are served in the order in which
they came; who comes later does not overtake one whose claims contradict its own.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from nagaya.plane.imagelock import Access

GRANT_S = 60.0  # that a lease is kept for a machine that waited for it and has not started yet
TTL_MIN_S, TTL_MAX_S = 5.0, 86400.0  # of a holder on another host; below, a busy network would lose it


@dataclass(frozen=True, slots=True)
class Host:
    """A host and one life of it."""

    name: str
    id: str  # /etc/machine-id, else the name
    boot_id: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to use an image. `inode` is the same for all names of the image, "" if it is not there."""

    path: str
    inode: str
    access: Access
    disk: str  # of the machine: "disk0"


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine, or a job of the daemon, and where. `pid` has the image locked; 0 while nobody has."""

    id: str
    name: str
    host: Host
    pid: int = 0
    start_time: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A right to use an image. `expires_at` None: for as long as it is used."""

    id: str
    claim: Claim
    holder: Holder
    since: float
    expires_at: float | None = None
    closed: bool = False  # the disk was taken away from its machine: it excludes nobody

    @property
    def reserved(self) -> bool:
        """Whether it is kept for a machine that does not run yet."""
        return self.expires_at is not None and not self.holder.pid and not self.closed


@dataclass(frozen=True, slots=True)
class Waiter:
    """A machine in the queue. It gets all its claims at once, as reserved leases."""

    id: str
    holder: Holder
    claims: tuple[Claim, ...]
    since: float
    deadline: float | None  # when it gives up
    rank: int  # place in the queue, the lowest is next


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stands between a claim and its lease: a lease, or a waiter that was there before."""

    claim: Claim
    lease: Lease | None = None
    waiter: Waiter | None = None


@dataclass(slots=True)
class LeaseTable:
    """All leases and waiters of one Nagaya."""

    leases: dict[str, Lease] = field(default_factory=dict)
    waiters: dict[str, Waiter] = field(default_factory=dict)

    def queue(self) -> list[Waiter]:
        """The waiters, the next one first."""
        return sorted(self.waiters.values(), key=lambda waiter: waiter.rank)

    def of(self, holder_id: str) -> list[Lease]:
        """The leases of one holder, oldest first."""
        return [lease for lease in self.leases.values() if lease.holder.id == holder_id]

    def obstacle(self, holder_id: str, claims: Sequence[Claim], rank: int | None = None) -> Obstacle | None:
        """The first thing that keeps `holder_id` from having `claims`; None if it may.

        `rank` is its place in the queue; without one it stands behind all waiters, but not behind itself.
        """
        own = next((waiter.rank for waiter in self.waiters.values() if waiter.holder.id == holder_id), None)
        place = own if rank is None else rank
        ahead = [
            waiter
            for waiter in self.queue()
            if waiter.holder.id != holder_id and (place is None or waiter.rank < place)
        ]
        held = [lease.claim for lease in self.of(holder_id) if not lease.closed]
        for number, claim in enumerate(claims):
            for lease in self.leases.values():
                if lease.holder.id != holder_id and not lease.closed and _contradict(lease.claim, claim):
                    return Obstacle(claim, lease=lease)
            if any(_contradict(other, claim) for other in claims[:number]):
                return Obstacle(claim)
            if any(_same(mine, claim) and mine.access is claim.access for mine in held):
                continue  # it has waited for it
            for waiter in ahead:
                if any(_contradict(theirs, claim) for theirs in waiter.claims):
                    return Obstacle(claim, waiter=waiter)
        return None

    def take(
        self, holder: Holder, claims: Sequence[Claim], now: float, expires_at: float | None = None
    ) -> list[Lease] | Obstacle:
        """All of `claims` for `holder`, in place of what it has, or what stands in the way.

        A holder that waits leaves the queue with that. What it had and does not claim is free: `grant` then.
        What it uses already stays as it is, and so do disks that were closed.
        """
        obstacle = self.obstacle(holder.id, claims)
        return self.adopt(holder, claims, now, expires_at) if obstacle is None else obstacle

    def adopt(
        self, holder: Holder, claims: Sequence[Claim], now: float, expires_at: float | None = None
    ) -> list[Lease]:
        """The same for a holder that has the images already, whatever the table says."""
        before = [lease for lease in self.of(holder.id) if not lease.closed]
        used = {lease.claim: lease for lease in before if lease.expires_at is None}
        self.drop(before)
        for waiter in self.queue():
            if waiter.holder.id == holder.id:
                del self.waiters[waiter.id]
        kept = used if expires_at is None else {}
        taken = [kept.get(claim) or Lease(new_id(), claim, holder, now, expires_at) for claim in claims]
        self.leases |= {lease.id: lease for lease in taken}
        return taken

    def drop(self, leases: Iterable[Lease]) -> None:
        """These are no more."""
        for lease in leases:
            self.leases.pop(lease.id, None)

    def change(self, lease: Lease, **facts: object) -> Lease:
        """`lease` with other facts, in its place."""
        changed: Lease = replace(lease, **facts)  # type: ignore[arg-type]  # names of its fields
        self.leases[lease.id] = changed
        return changed

    def wait(
        self,
        holder: Holder,
        claims: Sequence[Claim],
        now: float,
        deadline: float | None,
        *,
        first: bool = False,
    ) -> Waiter:
        """Queue `holder`, at the end or `first`. One that waits already keeps its place, unless `first`."""
        old = next((waiter for waiter in self.waiters.values() if waiter.holder.id == holder.id), None)
        ranks = [waiter.rank for waiter in self.waiters.values()] or [0]
        rank = min(ranks) - 1 if first else max(ranks) + 1
        if old is not None:
            waiter = replace(old, claims=tuple(claims), deadline=deadline, rank=rank if first else old.rank)
        else:
            waiter = Waiter(new_id(), holder, tuple(claims), now, deadline, rank)
        self.waiters[waiter.id] = waiter
        return waiter

    def grant(self, now: float) -> list[Waiter]:
        """Give leases to the waiters who can have them now; returns those, no longer waiting."""
        granted = []
        for waiter in self.queue():
            if self.obstacle(waiter.holder.id, waiter.claims, waiter.rank) is None:
                self.take(waiter.holder, waiter.claims, now, now + GRANT_S)
                granted.append(waiter)
        return granted

    def overdue(self, now: float, host: Host) -> tuple[list[Lease], list[Waiter]]:
        """Reserved leases and waiters whose time is over. A holder on another host keeps its lease: only a
        `break` may take it, because nobody here can know that it does not write any more."""
        leases = [
            lease
            for lease in self.leases.values()
            if lease.expires_at is not None and lease.expires_at <= now and lease.holder.host.id == host.id
        ]
        waiters = [w for w in self.queue() if w.deadline is not None and w.deadline <= now]
        return leases, waiters

    def next_event(self, host: Host) -> float | None:
        """When `overdue` next has something."""
        times = [
            lease.expires_at
            for lease in self.leases.values()
            if lease.expires_at is not None and lease.holder.host.id == host.id
        ]
        times += [waiter.deadline for waiter in self.waiters.values() if waiter.deadline is not None]
        return min(times, default=None)


def _contradict(one: Claim, other: Claim) -> bool:
    together = one.access is other.access and one.access in (Access.READER, Access.SHARED)
    return _same(one, other) and not together


def _same(one: Claim, other: Claim) -> bool:
    return one.inode == other.inode if one.inode and other.inode else one.path == other.path


def new_id() -> str:
    """12 hex digits, as machines have."""
    return uuid.uuid4().hex[:12]


@cache
def this_host() -> Host:
    """The host that this process runs on."""
    name = socket.gethostname()
    try:
        machine_id = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine_id = ""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Host(name, machine_id or name, boot_id)


def inode_of(path: str) -> str:
    """What is the same for all names of the image at `path`, as text; "" if it cannot be found."""
    from nagaya.plane.storage import image_key

    try:
        device, inode = image_key(os.stat(path))  # noqa: PTH116  # one call for files and devices
    except (OSError, ValueError):  # ValueError: a path with a zero byte
        return ""
    return f"{os.major(device)}:{os.minor(device)}" + ("" if inode < 0 else f":{inode}")
