"""What the daemon does by itself, again and again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nagaya.errors import NagayaError
from nagaya.images.workarea import areas
from nagaya.paths import Paths

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

BALANCE_INTERVAL = 3.0  # s; a machine that moves pays a few ms of cold caches
PLANE_RETRY = 1.0  # s between attempts to reach a plane that is gone

log = logging.getLogger("nagaya.daemon")


async def sweep_builds(paths: Paths) -> None:
    """Remove what killed builds and imports left: else it would take its GiB until the next build."""
    for area in areas(paths):
        try:
            await asyncio.to_thread(area.sweep)
        except OSError as error:
            log.warning("what a build left at %s cannot be removed: %s", area.root, error)


async def mind_plane(supervisor: Supervisor) -> None:
    """When the plane ends, the machines lost their devices: end those, and let policy start them again."""
    while True:
        await supervisor.parts.plane.lost()
        log.error("the plane has ended")
        try:
            await supervisor.check_devices()
        except NagayaError as error:
            log.error("the plane cannot be reached: %s", error)
            await asyncio.sleep(PLANE_RETRY)


async def balance(supervisor: Supervisor) -> None:
    """Keep each machine on one CPU, and the CPUs evenly loaded."""
    move = supervisor.parts.balance
    while move is not None:
        await asyncio.sleep(BALANCE_INTERVAL)
        running = {one.row.id: one.process.id.pid for one in supervisor.all() if one.process is not None}
        if not running:
            continue
        try:
            await move(running)
        except (NagayaError, OSError) as error:
            log.warning("machines could not be moved between CPUs: %s", error)
