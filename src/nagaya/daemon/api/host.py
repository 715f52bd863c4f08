"""`/v1/version`, `/v1/host`, `/v1/events`."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

import nagaya
from nagaya.daemon.api.sockets import send_events
from nagaya.daemon.daemon import Daemon
from nagaya.models.host import HostInfo, VersionInfo


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["host"])

    @routes.get("/version")
    async def version() -> VersionInfo:
        """What answers here."""
        return VersionInfo(nagaya.__version__)

    @routes.get("/host")
    async def host() -> HostInfo:
        """The host, and the processes of this Nagaya."""
        return daemon.host()

    @routes.websocket("/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        with daemon.events.subscribe() as news:
            await send_events(socket, news.__aiter__())

    return routes
