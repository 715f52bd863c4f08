"""Leases of holders on other hosts, who renew them: nobody here can stop one, or see that it ended."""

from __future__ import annotations

import asyncio
import time

from nagaya.daemon.leases import Leases
from nagaya.daemon.leaseviews import LeaseViews
from nagaya.errors import ConflictError, UsageError
from nagaya.models.lease import BreakInfo, LeaseInfo
from nagaya.plane.imagelock import Access, is_free, users_of
from nagaya.resources.leases import TTL_MAX_S, TTL_MIN_S, Claim, Holder, Host, Lease, inode_of, new_id

REMOTE_LIMIT = 10_000  # a row takes some hundred bytes


class RemoteLeases:
    """The commands of other hosts."""

    def __init__(self, leases: Leases, views: LeaseViews) -> None:
        self._leases = leases
        self._views = views

    async def claim(self, path: str, access: Access, host: Host, name: str, ttl: float) -> LeaseInfo:
        """A lease for somebody on another host, who renews it within `ttl` seconds, again and again."""
        if host.id == self._leases.host.id:
            raise UsageError("host: this is that host; a machine takes its leases when it starts")
        remote = [
            one for one in self._leases.table.leases.values() if one.holder.host.id != self._leases.host.id
        ]
        if len(remote) >= REMOTE_LIMIT:
            raise ConflictError(f"{REMOTE_LIMIT} leases of other hosts are the most")
        claim = Claim(path, await asyncio.to_thread(inode_of, path), access, "")
        await require_unlocked(claim)
        holder = Holder(f"{host.id}:{name}:{path}", name, host)
        obstacle = self._leases.table.obstacle(holder.id, [claim])
        if obstacle is not None:
            error = self._leases.refusal(f"{name} on host {host.name}", obstacle)
            await self._leases.note("refused", [claim], error.message)
            raise error
        now = time.time()
        self._leases.table.drop(self._leases.table.of(holder.id))
        lease = Lease(new_id(), claim, holder, now, now + _ttl(ttl))
        await self._leases.put(lease, "claimed", f"by {name} on host {host.name} for {ttl:g} s")
        return await self._views.info(lease)

    async def renew(self, lease_id: str, ttl: float) -> LeaseInfo:
        """Another `ttl` seconds for a holder on another host."""
        lease = self._require_remote(lease_id)
        lease = self._leases.table.change(lease, expires_at=time.time() + _ttl(ttl))
        await self._leases.flush()
        return await self._views.info(lease)

    async def release(self, lease_id: str) -> None:
        """A holder on another host has ended its use."""
        lease = self._require_remote(lease_id)
        holder = lease.holder
        await self._leases.drop([lease], "released", f"by {holder.name} on host {holder.host.name}")

    async def break_lease(self, lease: Lease, info: LeaseInfo, *, force: bool) -> BreakInfo:
        """End a lease whose time to live is over. Raises `ConflictError` before that, or without `force`."""
        holder = lease.holder
        where = f"{holder.name} on host {holder.host.name}"
        left = (lease.expires_at or 0.0) - time.time()
        if left > 0:
            raise ConflictError(
                f"{where} has {lease.claim.path} for another {left:.0f} s, and nobody here can stop it",
                hint="wait until its time to live is over",
                seconds=left,
            )
        if not force:
            raise ConflictError(
                f"the lease of {where} on {lease.claim.path} ended {-left:.0f} s ago, but it may still write",
                hint="make sure that it does not run any more, then use --force",
            )
        await self._leases.drop([lease], "broken", f"{where} had it and did not renew it")
        warning = f"if {where} still runs, two will write {lease.claim.path}, and destroy it"
        return BreakInfo(info, "", warning)

    def _require_remote(self, lease_id: str) -> Lease:
        lease = self._views.get(lease_id)
        if lease.holder.host.id == self._leases.host.id:
            raise ConflictError(
                f"lease {lease_id} is held by {lease.holder.name} on this host",
                hint=f"it ends when {lease.holder.name} is stopped",
            )
        return lease


async def require_unlocked(claim: Claim) -> None:
    """Raise `ConflictError` naming who has locked the image, if somebody has."""
    try:
        free = await asyncio.to_thread(is_free, claim.path, claim.access)
    except FileNotFoundError:
        return
    if not free:
        users = ", ".join(map(str, await asyncio.to_thread(users_of, claim.path)))
        raise ConflictError(
            f"{claim.path} is locked by {users or 'a process that cannot be seen from here'}",
            hint="end it first",
            path=claim.path,
        )


def _ttl(seconds: float) -> float:
    if not TTL_MIN_S <= seconds <= TTL_MAX_S:
        raise UsageError(f"ttl: {seconds:g} s is outside {TTL_MIN_S:g} to {TTL_MAX_S:g}", field="ttl")
    return seconds
