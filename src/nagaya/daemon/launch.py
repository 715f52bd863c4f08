"""What a machine needs around its process: overlays, directories, devices in the plane; made and removed.

Everything here may be done twice, and undone when only half of it is there, because the daemon may be killed
between any two lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nagaya.daemon.cabling import Cabling
from nagaya.daemon.diskfiles import DiskCatalog, has_overlay
from nagaya.daemon.leases import Leases, claims_of
from nagaya.daemon.parts import Parts
from nagaya.daemon.state import MachineRow
from nagaya.daemon.tenants import Tenants, path_of, share_nodes
from nagaya.engines.engine import Machine
from nagaya.errors import ConflictError, NagayaError, NotFoundError, ResourceError, SpecError
from nagaya.images.chain import layers_of
from nagaya.kernel import Kernel
from nagaya.paths import MachinePaths, Paths
from nagaya.plane.config import BalloonDevice, BlkDevice, ConsoleDevice, Device, Layer, MemDevice, RngDevice
from nagaya.plane.imagelock import Access
from nagaya.plane.shares import ShareNode
from nagaya.resources.hotmemory import hot_memory
from nagaya.resources.leases import inode_of
from nagaya.spec import Disk, MachineSpec
from nagaya.units import human_size

SERIAL_LIMIT = 20  # bytes, virtio 1.3 section 5.2.6


def resolve_images(catalog: DiskCatalog, spec: MachineSpec) -> tuple[str, ...]:
    """For each disk the digest of its base image ("" for none). Raises `NotFoundError` or `SpecError`."""
    digests = []
    for index, disk in enumerate(spec.disks):
        if disk.path and not (Path(disk.path).is_file() or Path(disk.path).is_block_device()):
            raise NotFoundError(
                f"disks[{index}].path: there is no file or block device {disk.path}",
                field=f"disks[{index}].path",
            )
        if disk.disk:
            catalog.named(disk.disk)
        if not disk.image:
            digests.append("")
            continue
        image = catalog.parts.images.resolve(disk.image)
        if disk.size is not None and disk.size < image.size:
            raise SpecError(
                f"disks[{index}].size: {human_size(disk.size)} is less than image {disk.image!r}, "
                f"which has {human_size(image.size)}",
                hint="leave the size out, or give at least the image's",
                field=f"disks[{index}].size",
            )
        digests.append(image.digest)
    return tuple(digests)


@dataclass(frozen=True, slots=True)
class Launcher:
    """Makes and removes the surroundings of machines."""

    paths: Paths
    parts: Parts
    leases: Leases
    tenants: Tenants
    catalog: DiskCatalog
    cabling: Cabling

    def machine(self, row: MachineRow, spec: MachineSpec, kernel: Kernel) -> Machine:
        """The machine as its engine wants it."""
        return Machine(row.id, spec, self.paths.machine(row.id), row.uid, row.uid, kernel, _names(row, spec))

    async def make_disks(self, row: MachineRow, spec: MachineSpec) -> None:
        """Create the overlays that are not there yet, and grow those that are to be larger."""
        await asyncio.to_thread(self._make_disks, row, spec)

    async def make_directories(self, machine: Machine) -> None:
        """An empty jail, and the directory of the machine's host-side sockets."""
        await asyncio.to_thread(_make_run, machine.paths, machine.gid)

    async def add_devices(self, row: MachineRow, machine: Machine) -> None:
        """Lease the images and have networks and plane serve all devices; if one fails, none is left."""
        try:
            await self.cabling.plug(row)
            devices = self.devices(row, machine)
            await asyncio.to_thread(self._spare_base_images, row.name, devices)
            await self.leases.take(row.id, row.name, devices)
            await _all(self.parts.plane.device_add(device) for device in devices)
            await self.cabling.recheck(row, machine, devices)
            await self._share_networks(row, machine.spec)
        except BaseException as error:
            await self.remove_devices(row, machine.spec)
            if isinstance(error, ConflictError):
                raise await self.leases.explained(row.name, error) from error
            raise
        await self.leases.confirm(row.id, self.parts.plane.pid())

    async def remove_devices(self, row: MachineRow, spec: MachineSpec) -> None:
        """Have the plane forget them; those that it does not have are passed over."""
        await _all(self._remove_device(f"{row.id}/{name}") for name in _names(row, spec))
        await self.cabling.unplug(row)
        await self.leases.release(row.id, row.name)
        with contextlib.suppress(NagayaError):  # they take a few bytes until the plane ends
            for resource, nodes in share_nodes(row.id, spec, self.tenants).items():
                ids = [node.id for node in nodes if not node.id.startswith("@")]
                await self.parts.plane.set_shares([], ids[::-1], resource=resource)

    async def _share_networks(self, row: MachineRow, spec: MachineSpec) -> None:
        """Tell what a machine gets of its networks, unless that is what everybody gets."""
        nodes = share_nodes(row.id, spec, self.tenants)["network"]
        if any(node != ShareNode(node.id) for node in nodes if "/" not in node.id) or spec.nics:
            await self.parts.plane.set_shares(nodes, resource="network")

    async def close_disk(self, row: MachineRow, disk: str) -> None:
        """Take one disk away from a machine that runs, after its requests in flight."""
        await self._remove_device(f"{row.id}/{disk}")
        await self.leases.close_disk(row.id, row.name, disk)

    def served(self, row: MachineRow, spec: MachineSpec, devices: frozenset[str]) -> bool:
        """Whether all devices of the machine, but for closed disks, are among `devices`."""
        wanted = frozenset(_names(row, spec)) - self.leases.closed_disks(row.id)
        return devices.issuperset(f"{row.id}/{name}" for name in wanted)

    async def remove_files(self, row: MachineRow) -> None:
        """Delete the machine's files, overlays and logs with them, and its leases."""
        await self.leases.forget(row.id)
        paths = self.paths.machine(row.id)
        for directory in (paths.run, paths.state):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            if directory.exists():
                raise ResourceError(f"{directory} cannot be removed", hint="look at what is left in it")

    async def remove_run(self, row: MachineRow) -> None:
        """Delete what lived as long as the machine's process."""
        await asyncio.to_thread(shutil.rmtree, self.paths.machine(row.id).jail, ignore_errors=True)

    async def _remove_device(self, device_id: str) -> None:
        with contextlib.suppress(NotFoundError):
            await self.parts.plane.device_del(device_id)

    def _spare_base_images(self, name: str, devices: Iterable[Device]) -> None:
        """Raise `ConflictError` if a disk would write an image of the store, under whatever name."""
        raw = [one for one in devices if isinstance(one, BlkDevice) and one.layers[0].format == "raw"]
        written = [claim for claim in claims_of(raw) if claim.access is not Access.READER]
        if not written:
            return
        bases = {inode_of(str(blob)) for blob in self.paths.images.glob("*.raw")}
        for claim in written:
            if claim.inode in bases:
                raise ConflictError(
                    f"{name} cannot write {claim.path} ({claim.disk}): it is a base image of the store, on "
                    "which other disks depend",
                    hint="name it as `image`, for a disk of its own on it, or say `read_only: true`",
                    path=claim.path,
                )

    def _make_disks(self, row: MachineRow, spec: MachineSpec) -> None:
        self.paths.machine(row.id).state.mkdir(mode=0o700, parents=True, exist_ok=True)
        for index, (disk, digest) in enumerate(zip(spec.disks, row.images, strict=True)):
            if not has_overlay(disk):
                continue
            files = self.catalog.own(row, index)
            if not files.exists():
                size = self.parts.images.blob(digest).stat().st_size if digest else 0
                files.make(disk.size or size, digest)
            elif disk.size is not None:
                files.grow(disk.size)

    def devices(self, row: MachineRow, machine: Machine) -> list[Device]:
        """What the plane serves for the machine."""
        paths, uid, gid = machine.paths, machine.uid, machine.gid
        devices: list[Device] = []
        nodes = share_nodes(row.id, machine.spec, self.tenants)["disk"]
        for index, disk in enumerate(machine.spec.disks):
            devices.append(
                BlkDevice(
                    id=f"{row.id}/disk{index}",
                    socket=str(paths.device_socket(f"disk{index}")),
                    uid=uid,
                    gid=gid,
                    layers=self._layers(row, index, disk),
                    read_only=disk.read_only,
                    shared=disk.shared,
                    direct=disk.direct,
                    serial=f"{row.id}-{index}"[:SERIAL_LIMIT],
                    shares=path_of(index, nodes),
                )
            )
        devices += self.cabling.devices(row, machine)
        devices.append(
            ConsoleDevice(
                id=f"{row.id}/console",
                socket=str(paths.device_socket("console")),
                uid=uid,
                gid=gid,
                console_socket=str(paths.console_socket),
                agent_socket=str(paths.agent_socket),
                log=str(paths.console_log),
                log_limit=machine.spec.console.log_limit,
                serial_socket=str(paths.device_socket("serial")) if self._has_serial(machine) else "",
            )
        )
        devices.append(RngDevice(f"{row.id}/rng", str(paths.device_socket("rng")), uid, gid))
        devices.append(BalloonDevice(f"{row.id}/balloon0", str(paths.device_socket("balloon0")), uid, gid))
        hot = hot_memory(machine.spec.memory)
        if hot is not None:
            socket = str(paths.device_socket("mem0"))
            place = (hot.start, hot.size, hot.requested)
            devices.append(MemDevice(f"{row.id}/mem0", socket, uid, gid, *place))
        return devices

    def _has_serial(self, machine: Machine) -> bool:
        return self.parts.engine(machine.spec).serial_console

    def _layers(self, row: MachineRow, index: int, disk: Disk) -> tuple[Layer, ...]:
        return layers_of(self.catalog.nodes(row, index, disk))


def _names(row: MachineRow, spec: MachineSpec) -> tuple[str, ...]:
    disks, nets = ((kind, len(one)) for kind, one in (("disk", spec.disks), ("net", row.nics)))
    numbered = (f"{kind}{index}" for kind, count in (disks, nets) for index in range(count))
    hot = ("mem0",) if spec.memory.max is not None else ()
    return (*numbered, "console", "rng", "balloon0", *hot)


def _make_run(paths: MachinePaths, gid: int) -> None:
    for directory in (paths.run.parent, paths.run):
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    paths.exit_file.unlink(missing_ok=True)
    if paths.jail.exists():
        shutil.rmtree(paths.jail)
    paths.jail.mkdir(mode=0o750)
    if os.geteuid() == 0:
        os.chown(paths.jail, 0, gid)


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """Do all at once, wait for all, then raise the first error."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
