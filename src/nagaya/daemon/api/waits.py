"""`/v1/machines/NAME/why` and `/v1/waits`: who waited for whom."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from nagaya.daemon import waits
from nagaya.daemon.api.machines import Name
from nagaya.daemon.daemon import Daemon
from nagaya.models.waits import WaitInfo, WaitResource, WhyAnswer

Since = Annotated[int, Query(ge=1, le=3600, description="seconds")]


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["waits"])

    @routes.get("/machines/{name}/why")
    async def why(name: Name, since: Since = 60, resource: WaitResource | None = None) -> WhyAnswer:
        """What it waited for, at one resource or at all, because of whom, and what would change it."""
        return await waits.why(daemon.supervisor, name, since, resource)

    @routes.get("/waits")
    async def matrix(since: Since = 60) -> list[WaitInfo]:
        """Who waited for whom, all machines, the longest first."""
        return await waits.matrix(daemon.supervisor, since)

    return routes
