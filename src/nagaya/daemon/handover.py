"""Leases by command: waited for, handed over and broken.

Nobody loses a lease while it could still write: whoever had it is stopped, or its disk closed, before another
gets it; a holder on another host, whom nobody here can stop, keeps it at least for its time to live.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Literal

from nagaya.daemon import failpoint
from nagaya.daemon.leases import Leases, claims_of
from nagaya.daemon.leaseviews import LeaseViews, is_on
from nagaya.daemon.remoteleases import RemoteLeases, require_unlocked
from nagaya.daemon.supervised import ALIVE, DOWN, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.errors import ConflictError, NagayaError, TimeoutExpiredError, UsageError
from nagaya.models.lease import BreakInfo, LeaseWait
from nagaya.resources.leases import Claim, Lease, LeaseTable, Obstacle, inode_of

Way = Literal["", "stop", "detach"]

FENCE_S = 30.0  # that a holder has to be gone
SYNC_S = 20.0  # that a guest has to write back what it has in memory


class Handover:
    """The commands on leases of this host's machines."""

    def __init__(self, supervisor: Supervisor, views: LeaseViews, remote: RemoteLeases) -> None:
        self._supervisor = supervisor
        self._views = views
        self._remote = remote
        self._leases: Leases = supervisor.leases

    async def wait(self, name: str, seconds: float | None) -> LeaseWait:
        """Queue a machine that is down for all its images."""
        one = self._supervisor.get(name)
        one.require(DOWN, "queued for leases", hint="it has its leases while it runs")
        await self._leases.wait(one.row.id, one.name, self._supervisor.devices(one), seconds)
        failpoint.reach("wait:queued")
        return self._leases.waiting(one.row.id, one.name)

    async def waiting(self, name: str, seconds: float) -> LeaseWait:
        """Where it is in the queue, once it is not in it any more or after `seconds`."""
        one = self._supervisor.get(name)
        deadline = time.monotonic() + seconds
        while True:
            found = self._leases.waiting(one.row.id, one.name)
            left = deadline - time.monotonic()
            if found.state != "waiting" or left <= 0:
                return found
            await self._leases.change(left)

    async def give_up(self, name: str) -> None:
        """It does not wait any more."""
        await self._leases.give_up(self._supervisor.get(name).row.id)

    async def transfer(self, resource: str, to: str, way: Way, seconds: float) -> LeaseWait:
        """Have the machine `to`, which is down, get the image next, before all who wait.

        Who has it is asked to shut down within `seconds` ("stop"), or loses the disk while it runs
        ("detach"). Raises `ConflictError` if neither is allowed and one of them is needed.
        """
        target = self._supervisor.get(to)
        target.require(DOWN, "given a lease", hint="stop it first")
        path = await self._views.path_of(resource)
        claims = claims_of(self._supervisor.devices(target))
        giving = self._in_the_way(target, path, claims)
        self._check_givers(giving, target, way)
        await self._leases.wait(
            target.row.id, target.name, self._supervisor.devices(target), None, first=True
        )
        try:
            for lease in giving:
                await self._give_up(lease, target, way, seconds)
            found = self._leases.waiting(target.row.id, target.name)
            if found.state != "granted":
                raise ConflictError(found.reason or f"{target.name} did not get {path}")
        except BaseException:
            await self._leases.give_up(target.row.id)
            raise
        names = ", ".join(dict.fromkeys(lease.holder.name for lease in giving)) or "nobody"
        moved = [claim for claim in claims if _is_at(claim, path)]
        await self._leases.note("transferred", moved, f"from {names} to {target.name}")
        return found

    def _in_the_way(self, target: Supervised, path: str, claims: Sequence[Claim]) -> list[Lease]:
        """The leases on the image at `path` that keep `target` from having it; nothing else may."""
        if not any(_is_at(claim, path) for claim in claims):
            raise UsageError(
                f"{target.name} has no disk on {path}", hint="a lease goes to a machine that uses the image"
            )
        table, inode = self._leases.table, inode_of(path)
        on_it = [lease for lease in table.leases.values() if is_on(lease, path, inode)]
        others = {key: lease for key, lease in table.leases.items() if lease not in on_it}
        obstacle = LeaseTable(others).obstacle(target.row.id, claims)
        if obstacle is not None:
            raise self._leases.refusal(target.name, obstacle)
        return [
            lease
            for lease in on_it
            if LeaseTable({lease.id: lease}).obstacle(target.row.id, claims) is not None
        ]

    def _check_givers(self, giving: Sequence[Lease], target: Supervised, way: Way) -> None:
        """Raise before anything is done, if something would be refused later."""
        for lease in giving:
            holder, claim = lease.holder, lease.claim
            if holder.host.id != self._leases.host.id or holder.id.startswith("job-"):
                raise self._leases.refusal(target.name, Obstacle(claim, lease=lease))
            if lease.reserved:
                continue
            if not way:
                raise ConflictError(
                    f"{holder.name} runs and has {claim.path} as its {claim.disk}",
                    hint="--stop asks it to shut down first; --detach closes the disk under it",
                    holder=holder.name,
                )
            if way == "detach" and claim.disk == "disk0":
                raise ConflictError(
                    f"disk0 of {holder.name} holds its root file system, it cannot be closed under it",
                    hint="use --stop",
                    holder=holder.name,
                )

    async def _give_up(self, lease: Lease, target: Supervised, way: Way, seconds: float) -> None:
        if lease.id not in self._leases.table.leases:  # went with another of the same machine
            return
        if lease.reserved:
            await self._leases.drop([lease], "taken away", f"{lease.holder.name} had it reserved")
            return
        one = self._supervisor.get(lease.holder.id)
        if way == "stop":
            await self._supervisor.stop(one.row.id, seconds)
            return
        synced = await self._sync(one)
        async with one.lock:
            if one.row.state in ALIVE:
                await self._supervisor.launcher.close_disk(one.row, lease.claim.disk)
                detail = f"{lease.claim.disk} goes to {target.name}; {synced}"
                await self._supervisor.move(one, one.row.state, "disk closed", detail)

    async def _sync(self, one: Supervised) -> str:
        agent = self._supervisor.parts.agent(one.name, self._supervisor.paths.machine(one.row.id))
        try:
            await agent.ping(1.0)
            status, *_rest = await agent.exec(["sync"], env={}, stdin=b"", seconds=SYNC_S)
        except (NagayaError, OSError):
            return "its guest could not be asked to write back"
        finally:
            await agent.close()
        return "its guest wrote back before" if status == 0 else "its guest failed to write back"

    async def break_lease(self, lease_id: str, *, force: bool) -> BreakInfo:
        """End a lease against its holder's will; with `force` one that lives is ended (fenced) before."""
        lease = self._views.get(lease_id)
        info = await self._views.info(lease)
        if info.state in ("remote", "expired"):
            return await self._remote.break_lease(lease, info, force=force)
        if info.state in ("reserved", "closed"):
            await self._leases.drop([lease], "broken", f"it was {info.state} for {lease.holder.name}")
            return BreakInfo(info, "")
        if lease.holder.id.startswith("job-"):
            raise ConflictError(
                f"{lease.holder.name} uses {lease.claim.path}",
                hint="cancel the job: `nagaya operation list` and `nagaya operation cancel`",
            )
        one = self._supervisor.get(lease.holder.id)
        if not force:
            raise ConflictError(
                f"{one.name} runs and has {lease.claim.path}: breaking its lease ends it",
                hint="stop it, transfer the lease, or use --force",
                machine=one.name,
            )
        await self._fence(one, lease)
        await self._leases.note("broken", [lease.claim], f"{one.name} had it and was killed for it")
        async with one.lock:
            await self._supervisor.move(one, one.row.state, "lease broken", lease.claim.path)
        return BreakInfo(info, f"{one.name} was killed and its disks closed")

    async def _fence(self, one: Supervised, lease: Lease) -> None:
        """The holder is gone, and the image's lock free, when this returns."""
        try:
            async with asyncio.timeout(FENCE_S):
                if one.row.state in ALIVE:
                    await self._supervisor.kill(one.row.id)
                await self._supervisor.launcher.remove_devices(one.row, one.spec)
        except TimeoutError as error:
            raise TimeoutExpiredError(
                f"{one.name} could not be ended within {FENCE_S:g} s; its lease on {lease.claim.path} stays",
                hint="the log of the plane may say what hangs",
                machine=one.name,
            ) from error
        await require_unlocked(lease.claim)


def _is_at(claim: Claim, path: str) -> bool:
    return claim.path == path or (claim.inode != "" and claim.inode == inode_of(path))
