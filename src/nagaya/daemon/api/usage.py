"""`/v1/usage` and `/v1/metrics`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Response

from nagaya.daemon import metrics
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.usage import usage
from nagaya.models.usage import UsageAnswer


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["usage"])

    @routes.get("/usage")
    async def show(
        since: Annotated[int, Query(ge=1, le=3600, description="seconds, for the waits")] = 5,
    ) -> UsageAnswer:
        """What all machines use of the host now: counters, and who waited for whom lately."""
        return await usage(daemon.supervisor, since)

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def scrape() -> Response:
        """The same for Prometheus."""
        now = await usage(daemon.supervisor, metrics.WAITS_SINCE)
        text = await asyncio.to_thread(metrics.render, now, await daemon.supervisor.memory.show())
        return Response(text, headers={"content-type": metrics.CONTENT_TYPE})

    return routes
