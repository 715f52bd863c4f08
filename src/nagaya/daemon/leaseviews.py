"""Leases as people see them: by the names of images, machines and disks."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from nagaya.daemon.leases import Leases, claims_of
from nagaya.daemon.supervisor import Supervisor
from nagaya.errors import NotFoundError
from nagaya.models.history import JournalEntry
from nagaya.models.lease import LeaseInfo, LeaseState
from nagaya.resources.leases import Lease, inode_of


class LeaseViews:
    """Finds and describes leases."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._leases: Leases = supervisor.leases

    async def all(self, resource: str = "") -> list[LeaseInfo]:
        """All leases, or those on one resource, by resource and age."""
        names = await self._image_names()
        leases = await self._on(resource) if resource else list(self._leases.table.leases.values())
        found = [self._info(lease, names) for lease in leases]
        return sorted(found, key=lambda info: (info.resource, info.since))

    async def journal(self, resource: str = "") -> list[JournalEntry]:
        """What happened to leases, of one image or all, oldest first."""
        return await self._leases.journal(await self.path_of(resource) if resource else "")

    def get(self, lease_id: str) -> Lease:
        """The lease with this id. Raises `NotFoundError`."""
        try:
            return self._leases.table.leases[lease_id]
        except KeyError:
            hint = "`nagaya lease list` shows them"
            raise NotFoundError(f"there is no lease {lease_id!r}", hint=hint) from None

    async def path_of(self, resource: str) -> str:
        """The image that is meant by a path, MACHINE/disk0, the name of an image, or a lease's id."""
        if resource in self._leases.table.leases:
            return self._leases.table.leases[resource].claim.path
        if resource.startswith("/"):
            return resource
        machine, _, disk = resource.partition("/")
        if disk:
            devices = self._supervisor.devices(self._supervisor.get(machine))
            path = next((claim.path for claim in claims_of(devices) if claim.disk == disk), "")
            if path:
                return path
            raise NotFoundError(f"{machine} has no {disk}", hint=f"see `nagaya show {machine}`")
        return str((await asyncio.to_thread(self._supervisor.parts.images.resolve, resource)).path)

    async def info(self, lease: Lease) -> LeaseInfo:
        """What the API says of it."""
        return self._info(lease, await self._image_names())

    async def _on(self, resource: str) -> list[Lease]:
        path = await self.path_of(resource)
        inode = await asyncio.to_thread(inode_of, path)
        return [lease for lease in self._leases.table.leases.values() if is_on(lease, path, inode)]

    async def _image_names(self) -> dict[str, str]:
        """Base images' names by their path."""
        images = await asyncio.to_thread(self._supervisor.parts.images.list)
        return {str(image.path): image.name for image in images}

    def _info(self, lease: Lease, image_names: dict[str, str]) -> LeaseInfo:
        claim, holder = lease.claim, lease.holder
        waiting = [
            waiter.holder.name
            for waiter in self._leases.table.queue()
            if any(is_on(lease, one.path, one.inode) for one in waiter.claims)
        ]
        return LeaseInfo(
            id=lease.id,
            resource=self._resource(claim.path, image_names),
            path=claim.path,
            inode=claim.inode,
            access=str(claim.access),
            state=self._state(lease),
            machine=holder.name,
            machine_id=holder.id,
            disk=claim.disk,
            host=holder.host.name,
            host_id=holder.host.id,
            boot_id=holder.host.boot_id,
            pid=holder.pid,
            start_time=holder.start_time,
            since=lease.since,
            expires_at=lease.expires_at,
            waiting=waiting,
        )

    def _state(self, lease: Lease) -> LeaseState:
        if lease.holder.host.id != self._leases.host.id:
            return "remote" if (lease.expires_at or 0.0) > time.time() else "expired"
        if lease.closed:
            return "closed"
        return "reserved" if lease.reserved else "held"

    def _resource(self, path: str, image_names: dict[str, str]) -> str:
        if path in image_names:
            return f"image {image_names[path]}"
        if Path(path).is_relative_to(self._supervisor.paths.disks):
            return f"disk {Path(path).relative_to(self._supervisor.paths.disks).parts[0]}"
        try:
            machine_id, file = Path(path).relative_to(self._supervisor.paths.state / "machines").parts
            name = self._supervisor.get(machine_id).name
        except (ValueError, NotFoundError):
            return path
        disk = re.match(r"disk[0-9]+", file)
        return f"{name}/{disk[0] if disk else file}"


def is_on(lease: Lease, path: str, inode: str) -> bool:
    """Whether it is a lease on the image at `path`, which has `inode`."""
    claim = lease.claim
    return claim.inode == inode if claim.inode and inode else claim.path == path
