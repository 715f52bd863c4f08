"""Disks of machines that run: they come and go, and a snapshot puts an empty layer on top.

The record goes first. An empty layer changes nothing, so a machine that starts with it after a crash finds
what it left; and a daemon that finds a machine whose plane has not changed over yet has it do so
(`catch_up`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nagaya.daemon import failpoint
from nagaya.errors import ConflictError, NagayaError, NotFoundError, UnavailableError, UnsupportedError
from nagaya.images.chain import Consistency, DiskFiles, Record, Snapshot
from nagaya.models.machine import MachineState
from nagaya.plane.config import BlkDevice, Device, Layer
from nagaya.spec import Disk, MachineSpec

if TYPE_CHECKING:
    from nagaya.daemon.parts import Agent
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

SNAPSHOTS_MOST = 256  # of one disk; each is a file
_ANSWER_S = 1.0  # that a guest agent has to say that it is there
_FREEZE_S = 15.0  # that a guest has to flush and freeze its file systems
_THAW_TRIES = 5

log = logging.getLogger("nagaya.daemon")


def with_snapshot(files: DiskFiles, record: Record, key: str, name: str, how: Consistency) -> Record:
    """`record` with a snapshot of the present top and a new, empty top; nothing is recorded yet."""
    if any(one.name == name for one in record.snapshots):
        raise ConflictError(f"disk {key} has a snapshot {name!r} already", disk=key, snapshot=name)
    if len(record.snapshots) >= SNAPSHOTS_MOST:
        raise ConflictError(f"disk {key} has {SNAPSHOTS_MOST} snapshots, the most there may be", disk=key)
    taken = Snapshot(name=name, layer=record.top, created_at=time.time(), consistency=how)
    pushed = files.push(record)
    return pushed.model_copy(update={"snapshots": (*record.snapshots, taken)})


async def snapshot(
    supervisor: Supervisor, one: Supervised, index: int, files: DiskFiles, *, key: str, name: str
) -> None:
    """Take a snapshot of disk `index` of a machine that runs. The guest waits some milliseconds."""
    async with one.lock:
        one.require_process()
        before = await asyncio.to_thread(files.record)
        async with _frozen(supervisor, one) as how:
            after = await asyncio.to_thread(with_snapshot, files, before, key, name, how)
            await _put(supervisor, one, index, files, (before, after))


async def grow(supervisor: Supervisor, one: Supervised, index: int, files: DiskFiles, size: int) -> None:
    """Have disk `index` of a machine that runs be of `size` bytes: a larger top. The guest is told."""
    async with one.lock:
        one.require_process()
        before = await asyncio.to_thread(files.record)
        after = await asyncio.to_thread(files.push, before, size)
        await _put(supervisor, one, index, files, (before, after))


async def renew(supervisor: Supervisor, one: Supervised, index: int) -> None:
    """Have the plane look at the files of disk `index` again, which may be others, or larger now."""
    async with one.lock:
        one.require_process()
        await change_over(supervisor, one, index)


async def attach(supervisor: Supervisor, one: Supervised, disk: Disk) -> None:
    """Give a machine that runs one more disk. It is in the spec when the guest has it."""
    async with one.lock:
        process = one.require_process()
        spec = one.spec.model_copy(update={"disks": (*one.spec.disks, disk)})
        process.engine.check(spec)
        row = replace(one.row, images=(*one.row.images, ""), spec=spec.to_json())
        machine = supervisor.launcher.machine(row, spec, supervisor.engine_machine(one).kernel)
        devices = supervisor.launcher.devices(row, machine)
        device = devices[len(one.spec.disks)]
        await _drop_surplus(supervisor, one, await supervisor.parts.plane.layers())
        await _lease(supervisor, one, devices)
        failpoint.reach("attach:leased")
        try:
            await supervisor.parts.plane.device_add(device)
            failpoint.reach("attach:served")
            try:
                await process.engine.plug(machine, process.id, device.id.partition("/")[2])
                failpoint.reach("attach:plugged")
            except BaseException:
                await supervisor.parts.plane.device_del(device.id)
                raise
        except BaseException:
            await _lease(supervisor, one, [one for one in devices if one is not device])
            raise
        one.spec = spec
        await supervisor.move(one, one.row.state, "attached", disk.disk, spec=row.spec, images=row.images)


async def detach(supervisor: Supervisor, one: Supervised) -> None:
    """Take the last disk from a machine that runs. The spec goes first: a disk too many ends no machine."""
    async with one.lock:
        process = one.require_process()
        before, images = one.spec, one.row.images
        index = len(before.disks) - 1
        machine = supervisor.engine_machine(one)
        devices = supervisor.launcher.devices(one.row, machine)

        async def record(spec: MachineSpec, images: tuple[str, ...], event: str) -> None:
            one.spec = spec
            disk = before.disks[index].disk
            await supervisor.move(one, one.row.state, event, disk, spec=spec.to_json(), images=images)

        await record(before.model_copy(update={"disks": before.disks[:-1]}), images[:-1], "detaching")
        failpoint.reach("detach:recorded")
        try:
            await process.engine.unplug(machine, process.id, f"disk{index}")
        except BaseException:
            await record(before, images, "not detached")
            raise
        failpoint.reach("detach:unplugged")
        await supervisor.parts.plane.device_del(f"{one.row.id}/disk{index}")
        failpoint.reach("detach:forgotten")
        await _lease(supervisor, one, [*devices[:index], *devices[index + 1 :]])


async def catch_up(supervisor: Supervisor) -> None:
    """Finish what a daemon died over: guests thaw, and the plane serves what the records say, and no more."""
    try:
        served = await supervisor.parts.plane.layers()
    except NagayaError as error:
        log.warning("the plane cannot be asked for its disks: %s", error)
        return
    for one in supervisor.all():
        if _surplus(supervisor, one, served):
            supervisor.spawn(_undo_plug(supervisor, one, served))  # a guest may need its time
        if one.process is None:
            continue
        try:
            await _catch_up(supervisor, one, served)
        except NagayaError as error:
            log.error("%s: %s", one.name, error)


async def _catch_up(supervisor: Supervisor, one: Supervised, served: Mapping[str, tuple[Layer, ...]]) -> None:
    if _marker(supervisor, one).exists():
        agent = supervisor.parts.agent(one.name, supervisor.paths.machine(one.row.id))
        await _thaw(agent, one.name)
        await agent.close()
        _marker(supervisor, one).unlink(missing_ok=True)
    for device in supervisor.launcher.devices(one.row, supervisor.engine_machine(one)):
        if isinstance(device, BlkDevice) and served.get(device.id, device.layers) != device.layers:
            log.warning("%s: %s is put onto its new layer", one.name, device.id)
            await supervisor.parts.plane.set_layers(device.id, device.layers)


async def _undo_plug(
    supervisor: Supervisor, one: Supervised, served: Mapping[str, tuple[Layer, ...]]
) -> None:
    try:
        async with one.lock:
            await _drop_surplus(supervisor, one, served)
    except NagayaError as error:
        log.error("%s: %s", one.name, error)


async def _drop_surplus(
    supervisor: Supervisor, one: Supervised, served: Mapping[str, tuple[Layer, ...]]
) -> None:
    """Take away disks of a plug that was not recorded, or of an unplug that was not finished."""
    for device_id in _surplus(supervisor, one, served):
        if one.process is not None:
            machine = supervisor.engine_machine(one)
            with contextlib.suppress(UnsupportedError):  # then it was never plugged
                await one.process.engine.unplug(machine, one.process.id, device_id.partition("/")[2])
        with contextlib.suppress(NotFoundError):
            await supervisor.parts.plane.device_del(device_id)
        log.warning("%s: %s is not in its specification, and gone", one.name, device_id)


def _surplus(supervisor: Supervisor, one: Supervised, served: Mapping[str, tuple[Layer, ...]]) -> list[str]:
    """Disks that the plane serves for the machine beyond those of its specification, if it is known."""
    own = {f"{one.row.id}/disk{index}" for index in range(len(one.spec.disks))}
    return sorted(
        device for device in served if device.startswith(f"{one.row.id}/disk") and device not in own
    )


async def _put(
    supervisor: Supervisor,
    one: Supervised,
    index: int,
    files: DiskFiles,
    records: tuple[Record, Record],
) -> None:
    """The second of `records`, which has a new top, takes the place of the first, also in the plane."""
    before, after = records
    await asyncio.to_thread(files.write, after)
    try:
        await change_over(supervisor, one, index)
    except UnavailableError:  # nobody knows whether it has; both are right
        raise
    except NagayaError:
        await asyncio.to_thread(files.write, before)
        raise


async def change_over(supervisor: Supervisor, one: Supervised, index: int) -> None:
    """Have the plane serve disk `index` from the files that its record names. The machine's lock is held."""
    devices = supervisor.launcher.devices(one.row, supervisor.engine_machine(one))
    wanted = f"{one.row.id}/disk{index}"
    for device in devices:
        if isinstance(device, BlkDevice) and device.id == wanted:
            await supervisor.parts.plane.set_layers(device.id, device.layers)
    await _lease(supervisor, one, devices)


async def _lease(supervisor: Supervisor, one: Supervised, devices: Sequence[Device]) -> None:
    """The machine's leases become those of `devices`."""
    closed = {f"{one.row.id}/{disk}" for disk in supervisor.leases.closed_disks(one.row.id)}
    open_devices = [device for device in devices if device.id not in closed]
    await supervisor.leases.take(one.row.id, one.name, open_devices)
    await supervisor.leases.confirm(one.row.id, supervisor.parts.plane.pid())


@contextlib.asynccontextmanager
async def _frozen(supervisor: Supervisor, one: Supervised) -> AsyncIterator[Consistency]:
    """The guest's file systems flushed and frozen, if it has an agent that can; else as they are."""
    agent = supervisor.parts.agent(one.name, supervisor.paths.machine(one.row.id))
    marker = _marker(supervisor, one)
    try:
        frozen = one.row.state is MachineState.RUNNING and await _freeze(agent, one.name, marker)
        try:
            yield "filesystem" if frozen else "crash"
        finally:
            if frozen:
                await _thaw(agent, one.name)
                await asyncio.to_thread(marker.unlink, True)
    finally:
        await agent.close()


async def _freeze(agent: Agent, name: str, marker: Path) -> bool:
    """Whether the guest's file systems are frozen. `marker` tells the next daemon, should this one die."""
    try:
        await agent.ping(_ANSWER_S)
    except NagayaError as error:
        log.info("%s: no agent freezes its file systems: %s", name, error)
        return False
    await asyncio.to_thread(marker.touch)
    try:
        async with asyncio.timeout(_FREEZE_S):
            return await agent.freeze() > 0
    except (NagayaError, TimeoutError) as error:
        log.info("%s: its file systems cannot be frozen: %s", name, error)
        await _thaw(agent, name, quiet=True)
        await asyncio.to_thread(marker.unlink, True)
        return False


def _marker(supervisor: Supervisor, one: Supervised) -> Path:
    return supervisor.paths.machine(one.row.id).run / "frozen"


async def _thaw(agent: Agent, name: str, *, quiet: bool = False) -> None:
    for attempt in range(1 if quiet else _THAW_TRIES):
        try:
            await agent.thaw()
        except NagayaError as error:
            if not quiet:
                log.error("%s: its file systems do not thaw (attempt %d): %s", name, attempt + 1, error)
        else:
            return
