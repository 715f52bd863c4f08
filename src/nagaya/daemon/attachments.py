"""Named disks come to machines and leave them, whether those run or not."""

from __future__ import annotations

from nagaya.daemon import livedisk
from nagaya.daemon.diskfiles import has_overlay
from nagaya.daemon.supervised import UP, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.errors import ConflictError, NotFoundError
from nagaya.spec import Disk


async def attach(supervisor: Supervisor, machine: str, name: str, *, read_only: bool) -> Supervised:
    """Give a machine one more disk; one that runs gets it at once, if its engine can."""
    one = supervisor.get(machine)
    supervisor.disks.named(name)
    if any(disk.disk == name for disk in one.spec.disks):
        raise ConflictError(f"{one.name} has disk {name!r} already", machine=one.name, disk=name)
    disk = Disk(disk=name, read_only=read_only)
    supervisor.disks.require_free([name])
    if one.row.state in UP:
        await livedisk.attach(supervisor, one, disk)
        return one
    disks = (*one.spec.disks, disk)
    await supervisor.change(one, one.spec.model_copy(update={"disks": disks}), one.row.source)
    return one


async def detach(supervisor: Supervisor, machine: str, name: str) -> Supervised:
    """Take a disk away from a machine; the disk keeps its content."""
    one = supervisor.get(machine)
    found = [index for index, disk in enumerate(one.spec.disks) if disk.disk == name]
    if not found:
        mine = ", ".join(disk.disk for disk in one.spec.disks if disk.disk) or "none"
        raise NotFoundError(f"{one.name} has no disk {name!r}; it has: {mine}", machine=one.name)
    after = one.spec.disks[found[0] + 1 :]
    if any(has_overlay(disk) for disk in after):
        raise ConflictError(
            f"behind {name!r} {one.name} has disks of its own, which are known by their place",
            hint="list disks with a name last",
            machine=one.name,
        )
    if one.row.state in UP:
        if after:
            raise ConflictError(
                f"{one.name} runs, and {name!r} is not its last disk",
                hint="detach the last one first: a guest knows its disks by their order",
                machine=one.name,
            )
        await livedisk.detach(supervisor, one)
        return one
    disks = (*one.spec.disks[: found[0]], *after)
    await supervisor.change(one, one.spec.model_copy(update={"disks": disks}), one.row.source)
    return one
