"""`/v1/plan`: what the host could carry, by what its machines have asked for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from nagaya.daemon import plan
from nagaya.daemon.daemon import Daemon
from nagaya.models.plan import ConsolidationAnswer, PlanAnswer
from nagaya.resources.planning import MOST


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["plan"])

    @routes.get("/plan")
    async def fits(
        like: Annotated[str, Query(description="name or id of a machine")],
        most: Annotated[int, Query(ge=1, le=MOST, description="machines more")] = 100,
        p99_us: Annotated[int | None, Query(ge=1, description="that a disk may take")] = None,
    ) -> PlanAnswer:
        """How many machines more like that one fit, and what breaks first. Takes seconds of a CPU."""
        return await plan.plan(daemon, like, most=most, p99_us=p99_us)

    @routes.get("/plan/consolidation")
    async def groups() -> ConsolidationAnswer:
        """Which machines could share one host."""
        return await plan.consolidate(daemon)

    return routes
