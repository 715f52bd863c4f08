"""Memory of machines that run grows and shrinks: the guest is asked, and the host's limit follows it.

What a machine started with is known from the plane: its region is what it may have beyond that. The control
group lets it have what it is asked to have, and no less than what it has; so memory that a guest touches
without having plugged it is at its own cost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nagaya.daemon.supervised import UP, Supervised
from nagaya.errors import ConflictError, NagayaError
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.resources.hotmemory import present
from nagaya.spec import MachineSpec
from nagaya.units import human_size

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

FIELD = "memory.size"
PAUSE_S = 0.5  # between looks at how far a guest is that gives memory back
TRIES = 120  # such looks; a guest that keeps it keeps its limit too

log = logging.getLogger("nagaya.daemon")


async def check(supervisor: Supervisor, one: Supervised, spec: MachineSpec) -> None:
    """Raise `ConflictError` unless a machine that runs can be given `spec`'s memory.size."""
    row = await _row(supervisor, one)
    size = spec.memory.size
    if row is None or spec.memory.max is None:
        _check_balloon(supervisor, one, size)
        return
    boot = present(spec.memory, row.size, 0)
    if size < boot:
        raise ConflictError(
            f"{FIELD}: {one.name} started with {human_size(boot)}, and can give back only what came later",
            hint="the rest is the broker's to take, while the guest does not need it: nagaya memory show",
            machine=one.name,
        )
    if (size - boot) % row.block:
        raise ConflictError(
            f"{FIELD}: {one.name} has {human_size(boot)} and whole blocks of {human_size(row.block)}",
            hint=f"{human_size(boot + (size - boot) // row.block * row.block)}, say",
            machine=one.name,
        )


def _check_balloon(supervisor: Supervisor, one: Supervised, size: int) -> None:
    """Nothing can be plugged, but the broker can take what is above `size`, and give it back."""
    if size > one.booted:
        raise ConflictError(
            f"{FIELD}: {one.name} started with {human_size(one.booted)} and without memory.max: "
            "nothing can be plugged",
            hint=f"nagaya stop {one.name}, set it, nagaya start {one.name}; and memory.max, to do it live",
            machine=one.name,
            fields=[FIELD],
        )
    if not supervisor.memory.settings.broker:
        raise ConflictError(
            f"{FIELD}: {one.name} is {one.row.state}, its balloon would have to do it, and the broker is off",
            hint="nagaya memory set broker=true",
            machine=one.name,
            fields=[FIELD],
        )


async def apply(supervisor: Supervisor, one: Supervised) -> None:
    """Ask the guest to have what its specification says now. It may take its time, or not do it.

    One that plugs nothing is asked by the broker.
    """
    row = await _row(supervisor, one)
    if row is None:
        supervisor.memory.look_soon()
        return
    requested = one.spec.memory.size - present(one.spec.memory, row.size, 0)
    await _hold(supervisor, one, max(requested, row.plugged), row)
    await supervisor.parts.plane.set_memory(row.id, requested)
    if row.plugged > requested:
        supervisor.spawn(_follow(supervisor, one))


async def renew(supervisor: Supervisor) -> None:
    """An earlier daemon may have died between the state, the control group and the plane.

    Or while it held a control group below its limit, to page out (`nagaya.resources.relocation`).
    """
    for one in supervisor.all():
        if one.row.state in UP and one.process is not None:
            try:
                async with one.lock:
                    if one.spec.memory.max is not None:
                        await apply(supervisor, one)
                    else:
                        await one.require_process().engine.hold(supervisor.engine_machine(one), one.booted)
            except NagayaError as error:
                log.warning("%s: its memory cannot be set: %s", one.name, error)


async def _follow(supervisor: Supervisor, one: Supervised) -> None:
    """Lower the limit once the guest has given memory back."""
    for _ in range(TRIES):
        await asyncio.sleep(PAUSE_S)
        async with one.lock:
            if one.row.state not in UP:
                return
            try:
                row = await _row(supervisor, one)
                if row is None or row.plugged > row.requested:
                    continue
                await _hold(supervisor, one, row.requested, row)
            except NagayaError as error:
                log.warning("%s: its memory's limit stays: %s", one.name, error)
            return
    log.warning("%s: its guest keeps memory that it was to give back", one.name)


async def _hold(supervisor: Supervisor, one: Supervised, plugged: int, row: HotMemoryStatus) -> None:
    size = present(one.spec.memory, row.size, plugged)
    await one.require_process().engine.hold(supervisor.engine_machine(one), size)


async def _row(supervisor: Supervisor, one: Supervised) -> HotMemoryStatus | None:
    rows = await supervisor.parts.plane.hot_memory()
    return next((row for row in rows if row.id.partition("/")[0] == one.row.id), None)
