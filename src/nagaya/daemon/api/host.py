"""`/v1/version`, `/v1/host`, `/v1/host/report`, `/v1/events`."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

import nagaya
from nagaya.daemon.api.settings import SettingsBody
from nagaya.daemon.api.sockets import send_events
from nagaya.daemon.daemon import Daemon
from nagaya.models.host import HostInfo, HostReport, VersionInfo
from nagaya.models.shares import ChangesAnswer


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["host"])

    @routes.get("/version")
    async def version() -> VersionInfo:
        """What answers here."""
        return VersionInfo(nagaya.__version__)

    @routes.get("/host")
    async def host() -> HostInfo:
        """The processes and the directories of this Nagaya."""
        return daemon.host()

    @routes.get("/host/report")
    async def report() -> HostReport:
        """What the host has, keeps, has promised, uses and has left; who waits for room, and the policy."""
        return await daemon.supervisor.capacity.report()

    @routes.patch("/host")
    async def change(body: SettingsBody, dry_run: bool = False) -> ChangesAnswer:
        """Set how much may be promised: `memory.overcommit`, `memory.kept`, `cpu.overcommit`, `cpu.kept`."""
        return await daemon.supervisor.capacity.set(body.pairs(), dry_run=dry_run)

    @routes.websocket("/events")
    async def events(socket: WebSocket) -> None:
        await socket.accept()
        with daemon.events.subscribe() as news:
            await send_events(socket, news.__aiter__())

    return routes
