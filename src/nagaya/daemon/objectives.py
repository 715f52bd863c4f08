"""Latency objectives that are missed, or met again: an event, and a line in the machine's history."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from nagaya.errors import NagayaError
from nagaya.units import format_time

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor
    from nagaya.spec import MachineSpec

REST = 60.0  # s between two lines in a history of 200: an objective at the edge must not fill it
PLANE_RETRY = 1.0  # s between attempts to reach a plane that is gone

log = logging.getLogger("nagaya.daemon")


async def mind_objectives(supervisor: Supervisor) -> None:
    """Say of each machine with a `latency_p99` whether the arbiter can keep it, at every change."""
    noted: dict[str, float] = {}
    while True:
        try:
            async for node, met in supervisor.parts.plane.objectives():
                await _tell(supervisor, node, met, noted)
        except NagayaError as error:
            log.error("the plane cannot be asked for objectives: %s", error)
        await asyncio.sleep(PLANE_RETRY)


async def _tell(supervisor: Supervisor, node: str, met: bool, noted: dict[str, float]) -> None:
    name = supervisor.shares.names()(node)
    supervisor.events.publish({"event": "objective", "id": node, "name": name, "met": met})
    machine, _, disk = node.partition("/")
    one = next((one for one in supervisor.all() if one.row.id == machine), None)
    if one is None or time.monotonic() - noted.get(node, -REST) < REST:
        return
    noted[node] = time.monotonic()
    await supervisor.note(one, f"objective {'met' if met else 'missed'}", f"{name} {_asked(one.spec, disk)}")


def _asked(spec: MachineSpec, disk: str) -> str:
    """A disk has an objective of its own, or its machine's."""
    index = int(disk.removeprefix("disk")) if disk else len(spec.disks)
    own = spec.disks[index].share.latency_p99 if index < len(spec.disks) else None
    field = "disk.latency_p99" if own is None else f"disks[{index}].share.latency_p99"
    asked = own or spec.disk.latency_p99
    return f"{field}={format_time(asked)}" if asked else f"{field}, which it no longer has"
