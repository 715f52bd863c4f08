"""`/v1/machines/NAME/queue`: starts that wait for room on the host."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from nagaya.daemon.api.machines import Name
from nagaya.daemon.daemon import Daemon
from nagaya.models.host import StartWait


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/machines", tags=["machines"])
    supervisor = daemon.supervisor

    @routes.post("/{name}/queue", status_code=202)
    async def queue(
        name: Name,
        timeout: Annotated[float | None, Query(ge=0, le=30 * 86400, description="seconds")] = None,  # noqa: ASYNC109
    ) -> StartWait:
        """Start it, or let it wait for room on the host. Asked again, it keeps its place."""
        return await supervisor.queue.start(name, timeout)

    @routes.get("/{name}/queue")
    async def waiting(name: Name, wait: Annotated[float, Query(ge=0, le=60)] = 0.0) -> StartWait:
        """Its place in that queue; with `wait` a long poll for a change of it."""
        return await supervisor.queue.waiting(name, wait)

    @routes.delete("/{name}/queue", status_code=204)
    async def leave(name: Name) -> None:
        """It does not wait any more."""
        await supervisor.queue.leave(supervisor.get(name))

    return routes
