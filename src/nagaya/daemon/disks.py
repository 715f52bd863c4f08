"""The commands on disks (docs/disks.md): each claims its disk, so that nothing else works on it meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from nagaya.daemon import livedisk
from nagaya.daemon.diskfiles import DiskCatalog, has_overlay, keys
from nagaya.daemon.disktarget import Target, describe
from nagaya.daemon.growth import grow_raw, grows
from nagaya.daemon.livemerge import LiveDisk
from nagaya.daemon.supervised import DOWN, UP, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.errors import ConflictError, NotFoundError, SpecError, UsageError
from nagaya.images.chain import DiskFiles, layers_of
from nagaya.images.formats import DRIVERS, Format
from nagaya.images.merge import Mover, change_base, merge
from nagaya.images.qemuimg import Node, QemuImg
from nagaya.images.workarea import sync
from nagaya.models.disk import DiskInfo
from nagaya.plane.config import ImageFormat, Layer
from nagaya.plane.copying import work
from nagaya.plane.imagelock import Access
from nagaya.progress import Progress
from nagaya.spec import NAME_PATTERN
from nagaya.units import human_size

_OWN = re.compile(r"(?P<machine>[^/]+)/disk(?P<index>\d{1,2})")


class Disks:
    """All disks. Work on image files runs confined, and long work as operations of the caller."""

    def __init__(self, supervisor: Supervisor, qemu: QemuImg) -> None:
        self._supervisor = supervisor
        self._catalog: DiskCatalog = supervisor.disks
        self._leases = supervisor.leases
        self._images = supervisor.parts.images
        self._qemu = qemu

    # -- looking

    async def all(self) -> list[DiskInfo]:
        """All disks: those with a name, then those of machines."""
        names = self._catalog.names()
        for one in self._supervisor.all():
            names += [f"{one.name}/disk{i}" for i, disk in enumerate(one.spec.disks) if not disk.disk]
        return [await self.show(name) for name in names]

    async def show(self, name: str) -> DiskInfo:
        """One disk. Raises `NotFoundError`."""
        target = self.find(name)
        return await asyncio.to_thread(describe, target, self._catalog.work_on(target.key), self._images)

    def find(self, name: str) -> Target:
        """The disk called `name`: "data", or "db/disk0". Raises `NotFoundError`."""
        own = _OWN.fullmatch(name)
        if own is None:
            files = self._catalog.named(name)
            return Target(name, tuple(self._users_of(name)), files)
        one = self._supervisor.get(own["machine"])
        index = int(own["index"])
        if index >= len(one.spec.disks):
            raise NotFoundError(
                f"{one.name} has {len(one.spec.disks)} disks, there is no disk{index}", disk=name
            )
        disk = one.spec.disks[index]
        key = f"{one.name}/disk{index}"
        if disk.disk:
            return self.find(disk.disk)
        if has_overlay(disk):
            return Target(key, (one,), self._catalog.own(one.row, index), index=index)
        return Target(key, (one,), node=self._catalog.nodes(one.row, index, disk)[0], index=index)

    # -- making and removing

    async def create(self, name: str, size: int | None, image: str) -> DiskInfo:
        """Make a disk with a name of its own: empty, or with the content of an image."""
        files = self._catalog.files_of(name)
        base = self._images.resolve(image) if image else None
        size = size or (base.size if base else 0)
        if not size or (base and size < base.size):
            least = f"at least {human_size(base.size)}, the size of image {image!r}" if base else "a size"
            raise SpecError(f"disk {name!r} needs {least}", field="size")
        with self._catalog.claim(name, "it is being made"):
            if files.exists():
                raise ConflictError(
                    f"there is a disk {name!r} already", hint="choose another name", disk=name
                )
            await asyncio.to_thread(files.make_recorded, size, base.digest if base else "")
        return await self.show(name)

    async def delete(self, name: str) -> None:
        """Remove a disk that no machine's spec has, with its snapshots."""
        target = self.find(name)
        if target.key != name or _OWN.fullmatch(name):
            raise ConflictError(f"disk {target.key} belongs to its machine", hint="it goes with the machine")
        if target.users:
            users = ", ".join(one.name for one in target.users)
            raise ConflictError(
                f"disk {name!r} is a disk of {users}",
                hint=f"detach it first: nagaya disk detach {target.users[0].name} {name}",
                disk=name,
            )
        files = target.require_files("deleted")
        with self._catalog.claim(name, "it is being deleted"):
            await asyncio.to_thread(files.remove)
            with contextlib.suppress(OSError):  # something else is in there
                files.directory.rmdir()

    async def resize(self, name: str, size: int) -> DiskInfo:
        """Grow a disk. A guest that runs is told."""
        target = self.find(name)
        if target.files is None:
            await self._grow_raw(target, size)
            return await self.show(name)
        files, work = target.files, "it is being resized"
        running = [one for one in target.users if one.row.state in UP]
        if len(running) == 1:
            with self._catalog.claim(target.key, work):
                if await asyncio.to_thread(grows, target.key, files, size):
                    await livedisk.grow(
                        self._supervisor, running[0], self._index(running[0], target), files, size
                    )
                    await self._note_size(target, size)
            return await self.show(name)
        async with self._idle(target, work):
            if await asyncio.to_thread(grows, target.key, files, size):
                await asyncio.to_thread(files.grow, size)
                await self._note_size(target, size)
        return await self.show(name)

    async def _grow_raw(self, target: Target, size: int) -> None:
        """A raw file or device that a machine's spec names."""
        one, path = target.users[0], target.node.path if target.node else Path()
        if not one.spec.disks[target.index].path:
            target.require_files("resized")
        with self._catalog.claim(target.key, "it is being resized"):
            if one.row.state in UP:
                await asyncio.to_thread(grow_raw, target.key, path, size)
                await livedisk.renew(self._supervisor, one, target.index)
                return
            target.require_rest()
            async with self._leases.held(f"disk {target.key}", {str(path): Access.WRITER}):
                await asyncio.to_thread(grow_raw, target.key, path, size)

    # -- snapshots

    async def snapshot(self, name: str, snapshot: str) -> DiskInfo:
        """Keep the disk's content as it is now under the name `snapshot`."""
        if not re.match(NAME_PATTERN, snapshot):
            raise UsageError(
                f"{snapshot!r} cannot name a snapshot: lower-case letters, digits and hyphens, 63 at most"
            )
        target = self.find(name)
        files = target.require_files("snapshotted")
        work = f"snapshot {snapshot} is being taken"
        running = [one for one in target.users if one.row.state in UP]
        if len(running) != 1:  # nobody runs, or several that only read
            async with self._idle(target, work):
                await asyncio.to_thread(_take, files, target.key, snapshot)
            return await self.show(name)
        one = running[0]
        index = self._index(one, target)
        with self._catalog.claim(target.key, work):
            await livedisk.snapshot(self._supervisor, one, index, files, key=target.key, name=snapshot)
        return await self.show(name)

    async def revert(self, name: str, snapshot: str) -> DiskInfo:
        """Go back to a snapshot; what was written since is gone."""
        target = self.find(name)
        files = target.require_files("reverted")
        async with self._idle(target, f"it is being reverted to {snapshot}"):
            await asyncio.to_thread(_revert, files, snapshot)
        return await self.show(name)

    async def delete_snapshot(self, name: str, snapshot: str, progress: Progress) -> DiskInfo:
        """Forget a snapshot and give its space back."""
        target = self.find(name)
        files = target.require_files("changed")
        with self._catalog.claim(target.key, f"snapshot {snapshot} is being deleted"):
            await asyncio.to_thread(_forget, files, snapshot)
        await self._merge(target, f"snapshot {snapshot} is being merged", progress, snapshot)
        return await self.show(name)

    # -- moving data

    async def commit(self, name: str, progress: Progress) -> DiskInfo:
        """Merge the layers that no snapshot needs."""
        target = self.find(name)
        await self._merge(target, "its layers are being merged", progress)
        return await self.show(name)

    async def _merge(self, target: Target, work: str, progress: Progress, snapshot: str = "") -> None:
        files, mover = target.require_files("merged"), self._mover(target, snapshot)
        if all(one.row.state in DOWN for one in target.users):
            async with self._idle(target, work):
                await merge(files, mover, progress)
            return
        with self._catalog.claim(target.key, work, starts=True):
            live = LiveDisk(self._supervisor, target.users, target.key, files)
            await live.merge(mover, progress)

    async def rebase(self, name: str, image: str, progress: Progress) -> DiskInfo:
        """Put the disk onto another image of the store, or onto none, with the same content."""
        target = self.find(name)
        files = target.require_files("rebased")
        base = self._images.resolve(image) if image else None
        node = Node(base.path, "raw") if base else None
        async with self._idle(target, f"it is being rebased onto {image or 'nothing'}"):
            await change_base(files, base.digest if base else "", node, self._mover(target), progress)
        return await self.show(name)

    async def convert(
        self, name: str, path: Path, image_format: Format, *, snapshot: str, progress: Progress
    ) -> dict[str, Any]:
        """Write the disk, or a snapshot of it, into a new file on this host."""
        target = self.find(name)
        chain, size, idle = await asyncio.to_thread(target.source, snapshot)
        async with self._reading(target, chain, idle, f"it is being copied to {path}"):
            partial = path.with_name(f".{path.name}.partial")
            try:
                await asyncio.to_thread(_begin, path, partial)
                if image_format == "qcow2":
                    await asyncio.to_thread(partial.unlink)
                    await asyncio.to_thread(self._supervisor.parts.create_overlay, str(partial), size, "", "")
                if (ours := _OURS.get(image_format)) is not None:
                    to = (Layer(str(partial), ours),)
                    job = work("export", target.key, layers_of(chain), to, snapshot=snapshot)
                    await self._supervisor.parts.plane.work(job, "copy", progress)
                else:
                    driver = DRIVERS[image_format]
                    await self._qemu.convert(chain, partial, driver, size, progress=progress)
                await asyncio.to_thread(_publish, partial, path)
            finally:
                await asyncio.to_thread(partial.unlink, True)
        return {"path": str(path), "format": image_format, "size": size}

    async def check(self, name: str, progress: Progress, *, repair: bool) -> dict[str, Any]:
        """Look for errors in the tables of all layers; `repair` gives leaked space back."""
        target = self.find(name)
        files = target.require_files("checked")
        async with self._idle(target, "it is being checked"):
            record = await asyncio.to_thread(files.record)
            chain = record.chain()
            layers = []
            for number, file in enumerate(chain):
                progress(f"check {file}", number / len(chain))
                report = await self._qemu.check(Node(files.path(file), "qcow2"), repair)
                kept = {key: report[key] for key in _REPORTED if key in report}
                layers.append({"file": file, **kept})
        totals = {key: sum(layer.get(key, 0) for layer in layers) for key in ("corruptions", "leaks")}
        return {"disk": target.key, **totals, "layers": layers}

    async def map(self, name: str, snapshot: str) -> list[dict[str, Any]]:
        """The extents of the disk or of a snapshot: where data is, and in which layer (0: the top)."""
        target = self.find(name)
        chain, _size, idle = await asyncio.to_thread(target.source, snapshot)
        async with self._reading(target, chain, idle, "its extents are being read"):
            return await self._qemu.map(chain)

    # -- helpers

    def _index(self, one: Supervised, target: Target) -> int:
        return keys(one.row, one.spec).index(target.key)

    def _mover(self, target: Target, snapshot: str = "") -> Mover:
        return Mover(self._supervisor.parts.plane.work, target.key, snapshot)

    @contextlib.asynccontextmanager
    async def _idle(self, target: Target, work: str) -> AsyncIterator[None]:
        """Claim a disk that no running machine has, and lease its layers for writing."""
        target.require_rest()
        with self._catalog.claim(target.key, work):
            record = await asyncio.to_thread(target.files.record) if target.files else None
            layers = [] if record is None or target.files is None else target.files.own(record)
            async with self._leases.held(f"disk {target.key}", dict.fromkeys(layers, Access.WRITER)):
                yield

    @contextlib.asynccontextmanager
    async def _reading(
        self, target: Target, chain: Sequence[Node], idle: bool, work: str
    ) -> AsyncIterator[None]:
        """Keep a disk at rest while it is read; a snapshot (not `idle`) is at rest by itself."""
        if not idle:
            yield
            return
        target.require_rest()
        paths = [str(node.path) for node in chain]
        with self._catalog.claim(target.key, work):
            async with self._leases.held(f"disk {target.key}", dict.fromkeys(paths, Access.READER)):
                yield

    def _users_of(self, name: str) -> Iterator[Supervised]:
        for one in self._supervisor.all():
            if any(disk.disk == name for disk in one.spec.disks):
                yield one

    async def _note_size(self, target: Target, size: int) -> None:
        """A machine's own disk has its size in the spec too."""
        for one in target.users:
            disk = one.spec.disks[target.index]
            if disk.disk:
                continue
            disks = list(one.spec.disks)
            disks[target.index] = disk.model_copy(update={"size": size})
            spec = one.spec.model_copy(update={"disks": tuple(disks)})
            one.spec = spec
            await self._supervisor.move(one, one.row.state, "resized", target.key, spec=spec.to_json())


_OURS: dict[str, ImageFormat] = {"raw": "raw", "qcow2": "qcow2"}  # formats that the plane writes
_REPORTED = ("corruptions", "leaks", "corruptions-fixed", "leaks-fixed", "check-errors")


def _take(files: DiskFiles, key: str, name: str) -> None:
    files.write(livedisk.with_snapshot(files, files.record(), key, name, "stopped"))


def _revert(files: DiskFiles, name: str) -> None:
    record = files.record()
    files.write(files.push(record, parent=record.snapshot(name).layer))


def _forget(files: DiskFiles, name: str) -> None:
    record = files.record()
    gone = record.snapshot(name)
    kept = tuple(one for one in record.snapshots if one is not gone)
    files.write(record.model_copy(update={"snapshots": kept}))


def _publish(partial: Path, path: Path) -> None:
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def _begin(path: Path, partial: Path) -> None:
    """An empty file to copy into. Raises `ConflictError` rather than overwrite anything."""
    if path.exists():
        raise ConflictError(f"{path} exists", hint="choose another name, or remove it", path=str(path))
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no directory {path.parent}", path=str(path))
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
