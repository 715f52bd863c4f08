"""`/v1/machines/NAME/demand`: what a machine asked of the host, hour by hour."""

from __future__ import annotations

from fastapi import APIRouter

from nagaya.daemon.api.machines import Name
from nagaya.daemon.daemon import Daemon
from nagaya.models.demand import DemandAnswer


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["demand"])

    @routes.get("/machines/{name}/demand")
    async def show(name: Name) -> DemandAnswer:
        """Percentiles of what it asked for in each hour of two weeks, and samples of the last hour."""
        return await daemon.demand.of(daemon.supervisor, name)

    return routes
