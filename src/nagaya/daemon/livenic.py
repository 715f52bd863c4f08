"""NICs of machines that run: they come and go.

The record goes last, in both directions: until it is there, the plane serves a port too many, which the next
daemon takes away (`catch_up`), and never one too few, for which it would end the machine. In memory the
machine has the NIC from the beginning of a plug, for networks look at all machines.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from nagaya.daemon import failpoint
from nagaya.daemon.nics import Plug, plugs
from nagaya.daemon.state import MachineRow
from nagaya.errors import ConflictError, NagayaError, NotFoundError, UnsupportedError
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

log = logging.getLogger("nagaya.daemon")


async def connect(supervisor: Supervisor, one: Supervised, spec: MachineSpec) -> None:
    """Give a machine that runs the NIC that `spec` has at its end. It is recorded when the guest has it."""
    async with one.lock:
        one.require_process().engine.check(spec)
        supervisor.groups.require(spec)
        wanted = await supervisor.networks.prepare(spec)
        await _drop_surplus(supervisor, one, await supervisor.parts.plane.device_ids())
        rows = supervisor.networks.allot(one.row.id, one.name, wanted, one.row.nics)
        before = one.row, one.spec
        one.row, one.spec = replace(one.row, nics=rows, spec=spec.to_json()), spec
        mine = plugs(spec, rows)[-1]
        try:
            await _plug(supervisor, one, mine, before[1])
            await supervisor.move(
                one, one.row.state, "connected", f"{mine.name} on {mine.row.network}", nics=rows
            )
        except BaseException:
            there = one.row, one.spec
            one.row, one.spec = before
            try:
                await _withdraw(supervisor, one, mine, there)
            except NagayaError as error:
                log.error("%s: %s is not taken back: %s", one.name, mine.name, error)
            raise


async def disconnect(supervisor: Supervisor, one: Supervised, gone: Plug) -> None:
    """Take the last NIC from a machine that runs. Raises `TimeoutExpiredError` if the guest keeps it."""
    async with one.lock:
        process = one.require_process()
        have = plugs(one.spec, one.row.nics)
        if gone != have[-1]:
            raise ConflictError(
                f"{one.name} runs, and {gone.name} is not its last NIC",
                hint=f"disconnect {have[-1].name} first, or stop the machine: a guest's NICs have an order",
                machine=one.name,
            )
        there = one.row, one.spec
        nics = [plug.spec.model_dump(mode="json") for plug in have[:-1]]
        spec = MachineSpec.model_validate({**one.spec.to_json(), "nics": nics})
        await process.engine.unplug(supervisor.engine_machine(one), process.id, gone.name)
        failpoint.reach("disconnect:unplugged")
        one.spec = spec
        try:
            await supervisor.move(
                one,
                one.row.state,
                "disconnected",
                f"{gone.name} on {gone.row.network}",
                spec=spec.to_json(),
                nics=one.row.nics[:-1],
            )
        except NagayaError:
            one.spec = there[1]
            raise
        failpoint.reach("disconnect:recorded")
        await _forget(supervisor, one, gone, there[0])


async def catch_up(supervisor: Supervisor) -> None:
    """Finish or undo what a daemon died over: no port is left that its machine's record does not have."""
    try:
        served = await supervisor.parts.plane.device_ids()
    except NagayaError as error:
        log.warning("the plane cannot be asked for its ports: %s", error)
        return
    for one in supervisor.all():
        if _surplus(one, served):
            supervisor.spawn(_undo(supervisor, one))  # a guest may need its time


async def _undo(supervisor: Supervisor, one: Supervised) -> None:
    try:
        async with one.lock:
            await _drop_surplus(supervisor, one, await supervisor.parts.plane.device_ids())
    except NagayaError as error:
        log.error("%s: %s", one.name, error)


async def _drop_surplus(supervisor: Supervisor, one: Supervised, served: Iterable[str]) -> None:
    for device_id in _surplus(one, served):
        if one.process is not None:
            machine = supervisor.engine_machine(one)
            with contextlib.suppress(UnsupportedError):  # then it was never plugged
                await one.process.engine.unplug(machine, one.process.id, device_id.partition("/")[2])
        with contextlib.suppress(NotFoundError):
            await supervisor.parts.plane.device_del(device_id)
        log.warning("%s: %s is not in its specification, and gone", one.name, device_id)


def _surplus(one: Supervised, served: Iterable[str]) -> list[str]:
    """Ports that the plane serves for the machine beyond those of its record."""
    own = {f"{one.row.id}/net{index}" for index in range(len(one.row.nics))}
    return sorted(device for device in served if device.startswith(f"{one.row.id}/net") and device not in own)


async def _plug(supervisor: Supervisor, one: Supervised, mine: Plug, before: MachineSpec) -> None:
    """Network, port, shares, guest; in this order."""
    process = one.require_process()
    machine = supervisor.engine_machine(one)
    await supervisor.cabling.plug(one.row)
    devices = supervisor.cabling.devices(one.row, machine)
    await supervisor.parts.plane.device_add(devices[-1])
    await supervisor.cabling.recheck(one.row, machine, devices)
    await supervisor.shares.grow_network(one, before)
    failpoint.reach("connect:served")
    await process.engine.plug(machine, process.id, mine.name)
    failpoint.reach("connect:plugged")


async def _withdraw(
    supervisor: Supervisor, one: Supervised, gone: Plug, there: tuple[MachineRow, MachineSpec]
) -> None:
    """Undo as much of a plug as there is. The guest may have the NIC, if only the record has failed."""
    process = one.process
    if process is not None:
        machine = replace(supervisor.engine_machine(one), spec=there[1])
        with contextlib.suppress(UnsupportedError):
            await process.engine.unplug(machine, process.id, gone.name)
    await _forget(supervisor, one, gone, there[0])


async def _forget(supervisor: Supervisor, one: Supervised, gone: Plug, there: MachineRow) -> None:
    """The port leaves the plane, and a network that nobody uses now the host. `there` has the NIC yet."""
    device_id = f"{one.row.id}/{gone.name}"
    with contextlib.suppress(NotFoundError):
        await supervisor.parts.plane.device_del(device_id)
    await supervisor.cabling.leave(there, gone)
    with contextlib.suppress(NagayaError):  # it takes a few bytes until the plane ends
        await supervisor.parts.plane.set_shares([], [device_id], resource="network")
