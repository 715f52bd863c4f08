"""Disks that are not well: what the daemon says of their machines, and the faults that it lays upon them.

A machine whose disk waits for space, or has lost writes, is in the state `io-error`. That is how it is, not
what should be: it is not in the machine's row, and it ends by itself. Its CPUs run on (docs/decisions/0006).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nagaya.daemon.supervised import UP, Supervised
from nagaya.errors import NagayaError, NotFoundError, UsageError
from nagaya.models.fault import DiskFaults
from nagaya.plane.conditions import Conditions, after

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

EFFECTS = ("latency_us", "jitter_us", "error_rate", "torn_write_rate", "stuck", "full")
PLANE_RETRY = 1.0  # s between attempts to reach a plane that is gone

log = logging.getLogger("nagaya.daemon")


async def mind_disks(supervisor: Supervisor) -> None:
    """Say of each machine what is the matter with its disks, as long as it is."""
    while True:
        try:
            async for conditions in supervisor.parts.plane.conditions():
                await _tell(supervisor, conditions)
        except NagayaError as error:
            log.error("the plane cannot be asked for the disks' conditions: %s", error)
        await _tell(supervisor, {})
        await asyncio.sleep(PLANE_RETRY)


async def _tell(supervisor: Supervisor, conditions: Conditions) -> None:
    for one in supervisor.all():
        own = f"{one.row.id}/"
        now = {key.removeprefix(own): it for key, it in conditions.items() if key.startswith(own)}
        if now == one.conditions:
            continue
        before, one.conditions = one.trouble, now
        if one.trouble != before and (one.trouble or one.row.state in UP):
            event = "io-error" if one.trouble else "io-error over"
            log.warning("%s: %s", one.name, one.trouble or "its disks are well again")
            await supervisor.note(one, event, one.trouble)
        supervisor.publish(one)


async def set_faults(supervisor: Supervisor, name: str, disk: int, faults: Mapping[str, Any] | None) -> None:
    """Lay faults upon a disk of a machine that runs; None ends them, and they end with the machine's run."""
    one = supervisor.get(name)
    async with one.lock:
        one.require(UP, "given faults", hint="they last as long as the machine runs; start it first")
        _check_disk(one, disk)
        _check_effect(faults)
        await supervisor.parts.plane.set_faults(f"{one.row.id}/disk{disk}", faults)
        one.conditions = after(one.conditions, "DEVICE_FAULTS", {"id": f"disk{disk}", "faults": faults})
        supervisor.publish(one)
        await supervisor.note(
            one, "faults" if faults else "faults over", f"disk{disk} {faults or ''}".rstrip()
        )


async def list_faults(supervisor: Supervisor, name: str) -> list[DiskFaults]:
    """The disks of a machine upon which there are faults."""
    one = supervisor.get(name)
    counts = await supervisor.parts.plane.faulted() if one.faults else {}
    return [
        DiskFaults.from_json({**faults, "disk": disk, "faulted": counts.get(f"{one.row.id}/disk{disk}", 0)})
        for disk, faults in one.faults.items()
    ]


def _check_effect(faults: Mapping[str, Any] | None) -> None:
    if faults is not None and not any(faults.get(name) for name in EFFECTS):
        raise UsageError("these faults have no effect", hint=f"give at least one of {', '.join(EFFECTS)}")


def _check_disk(one: Supervised, disk: int) -> None:
    disks = len(one.spec.disks)
    if disk >= disks:
        raise NotFoundError(
            f"{one.name} has no disk {disk}",
            hint=f"it has {disks}, counted from 0",
            machine=one.name,
            disk=disk,
        )
