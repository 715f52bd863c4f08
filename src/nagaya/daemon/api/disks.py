"""`/v1/disks`, and disks of machines: attach and detach. A disk is `data`, or `db/disk0` of the machine
db.
"""

from __future__ import annotations

import pathlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon import attachments
from nagaya.daemon.daemon import Daemon
from nagaya.errors import UsageError
from nagaya.images.formats import Format
from nagaya.knobs import Size
from nagaya.models.disk import DiskInfo
from nagaya.models.machine import MachineInfo
from nagaya.models.operation import OperationInfo
from nagaya.progress import Progress
from nagaya.spec import MIB, Name

DiskName = Annotated[str, Path(description="`data`, or `db/disk0`", max_length=140)]
DiskSize = Annotated[Size, Field(ge=MIB, multiple_of=512, description="bytes, or with a unit: `10GiB`")]
OptionalName = Annotated[str, Field(max_length=64)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateBody(_Body):
    """A disk with a name of its own."""

    name: Name
    size: Annotated[DiskSize | None, Field(description="left out: the image's")] = None
    image: Annotated[OptionalName, Field(description="what is on it at first; empty: nothing")] = ""


class ResizeBody(_Body):
    """How large it is to be."""

    size: DiskSize


class SnapshotBody(_Body):
    """A snapshot, by its name."""

    name: Annotated[str, Field(max_length=64)]


class RebaseBody(_Body):
    """What the disk is to lie on."""

    image: Annotated[OptionalName, Field(description="a name from the image store; empty: nothing")] = ""


class ConvertBody(_Body):
    """A file to write."""

    path: Annotated[str, Field(description="absolute path on the daemon's host", max_length=4096)]
    format: Format = "qcow2"
    snapshot: Annotated[OptionalName, Field(description="empty: the disk as it is")] = ""


class CheckBody(_Body):
    """How to check."""

    repair: Annotated[bool, Field(description="give leaked space back")] = False


class AttachBody(_Body):
    """A disk for a machine."""

    disk: Name
    read_only: bool = False


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["disks"])
    _looking(routes, daemon)
    _changing(routes, daemon)
    _moving(routes, daemon)
    _machines(routes, daemon)
    return routes


def _looking(routes: APIRouter, daemon: Daemon) -> None:
    disks = daemon.disks

    @routes.get("/disks")
    async def list_disks() -> list[DiskInfo]:
        """All disks: those with a name, then those of machines."""
        return await disks.all()

    @routes.get("/disks/{disk:path}/map")
    async def extents(
        disk: DiskName, snapshot: Annotated[str, Query(max_length=64)] = ""
    ) -> list[dict[str, Any]]:
        """Where data is: `start`, `length`, `depth` (the layer, 0 the top), `zero`, `data`, `offset`."""
        return await disks.map(disk, snapshot)

    @routes.get("/disks/{disk:path}")
    async def show(disk: DiskName) -> DiskInfo:
        """One disk."""
        return await disks.show(disk)


def _changing(routes: APIRouter, daemon: Daemon) -> None:
    disks = daemon.disks

    @routes.post("/disks", status_code=201)
    async def create(body: CreateBody) -> DiskInfo:
        """Make a disk with a name of its own."""
        return await disks.create(body.name, body.size, body.image)

    @routes.post("/disks/{disk:path}/resize")
    async def resize(disk: DiskName, body: ResizeBody) -> DiskInfo:
        """Grow it."""
        return await disks.resize(disk, body.size)

    @routes.post("/disks/{disk:path}/snapshots", status_code=201)
    async def snapshot(disk: DiskName, body: SnapshotBody) -> DiskInfo:
        """Keep its content as it is now under a name."""
        return await disks.snapshot(disk, body.name)

    @routes.post("/disks/{disk:path}/revert")
    async def revert(disk: DiskName, body: SnapshotBody) -> DiskInfo:
        """Go back to a snapshot; what was written since is gone."""
        return await disks.revert(disk, body.name)

    @routes.delete("/disks/{disk:path}/snapshots/{name}", status_code=202)
    async def delete_snapshot(disk: DiskName, name: Annotated[str, Path(max_length=64)]) -> OperationInfo:
        """Forget a snapshot, and merge its layer with the one above it."""
        disks.find(disk)
        return await _begin(
            daemon, "snapshot delete", disk, lambda progress: disks.delete_snapshot(disk, name, progress)
        )

    @routes.delete("/disks/{disk:path}", status_code=204)
    async def delete(disk: DiskName) -> None:
        """Remove a disk that no machine has."""
        await disks.delete(disk)


def _moving(routes: APIRouter, daemon: Daemon) -> None:
    disks = daemon.disks

    @routes.post("/disks/{disk:path}/commit", status_code=202)
    async def commit(disk: DiskName) -> OperationInfo:
        """Merge the layers that no snapshot needs."""
        disks.find(disk)
        return await _begin(daemon, "disk commit", disk, lambda progress: disks.commit(disk, progress))

    @routes.post("/disks/{disk:path}/rebase", status_code=202)
    async def rebase(disk: DiskName, body: RebaseBody) -> OperationInfo:
        """Put it onto another image of the store, with the same content."""
        disks.find(disk)
        return await _begin(
            daemon, "disk rebase", disk, lambda progress: disks.rebase(disk, body.image, progress)
        )

    @routes.post("/disks/{disk:path}/convert", status_code=202)
    async def convert(disk: DiskName, body: ConvertBody) -> OperationInfo:
        """Write it, or a snapshot of it, into a new file on the daemon's host."""
        path = pathlib.PurePosixPath(body.path)
        if not path.is_absolute() or "\0" in body.path:
            raise UsageError(f"path: {body.path!r} is not an absolute path", field="path")
        disks.find(disk)

        async def work(progress: Progress) -> dict[str, Any]:
            return await disks.convert(
                disk, pathlib.Path(path), body.format, snapshot=body.snapshot, progress=progress
            )

        return await daemon.operations.start("disk convert", disk, work)

    @routes.post("/disks/{disk:path}/check", status_code=202)
    async def check(disk: DiskName, body: CheckBody | None = None) -> OperationInfo:
        """Look for errors in its tables; the result is the report."""
        disks.find(disk)

        async def work(progress: Progress) -> dict[str, Any]:
            return await disks.check(disk, progress, repair=body is not None and body.repair)

        return await daemon.operations.start("disk check", disk, work)


def _machines(routes: APIRouter, daemon: Daemon) -> None:
    supervisor = daemon.supervisor

    @routes.post("/machines/{name}/disks", status_code=201)
    async def attach(name: Annotated[str, Path(max_length=64)], body: AttachBody) -> MachineInfo:
        """Give a machine one more disk."""
        return daemon.machine(await attachments.attach(supervisor, name, body.disk, read_only=body.read_only))

    @routes.delete("/machines/{name}/disks/{disk}")
    async def detach(
        name: Annotated[str, Path(max_length=64)], disk: Annotated[str, Path(max_length=64)]
    ) -> MachineInfo:
        """Take a disk away from a machine; the disk keeps its content."""
        return daemon.machine(await attachments.detach(supervisor, name, disk))


async def _begin(
    daemon: Daemon, kind: str, disk: str, job: Callable[[Progress], Awaitable[DiskInfo]]
) -> OperationInfo:
    """Start `job` as an operation whose result is the disk."""

    async def work(progress: Progress) -> dict[str, Any]:
        return asdict(await job(progress))

    return await daemon.operations.start(kind, disk, work)
