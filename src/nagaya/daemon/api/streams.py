"""What has no end: `/v1/machines/NAME/logs` and `/v1/machines/NAME/console`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, WebSocket
from fastapi.responses import StreamingResponse

from nagaya.daemon import logs
from nagaya.daemon.api.machines import Name
from nagaya.daemon.api.sockets import first_of, refuse
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.supervised import UP
from nagaya.errors import NagayaError, UnavailableError

PIECE = 16 * 1024  # bytes of console that one message carries at most


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/machines", tags=["machines"])

    @routes.get(
        "/{name}/logs",
        response_class=StreamingResponse,
        responses={
            200: {"description": "The log", "content": {"text/plain": {"schema": {"type": "string"}}}}
        },
    )
    async def read_logs(
        name: Name,
        source: Literal["console", "engine"] = "console",
        tail: Annotated[int | None, Query(ge=0, le=10**7, description="only the last lines")] = None,
        raw: Annotated[bool, Query(description="keep control sequences")] = False,
        follow: Annotated[bool, Query(description="go on with what comes")] = False,
    ) -> StreamingResponse:
        """What its console (or its engine) printed."""
        paths = daemon.paths.machine(daemon.supervisor.get(name).row.id)
        path = paths.console_log if source == "console" else paths.engine_log
        return StreamingResponse(
            logs.read(path, tail=tail, raw=raw, follow=follow), media_type="text/plain; charset=utf-8"
        )

    @routes.websocket("/{name}/console")
    async def console(socket: WebSocket, name: str) -> None:
        try:
            one = daemon.supervisor.get(name)
            one.require(UP, "attached to", hint=f"nagaya start {one.name}")
            path = daemon.paths.machine(one.row.id).console_socket
            try:
                reader, writer = await asyncio.open_unix_connection(str(path))
            except OSError as error:
                raise UnavailableError(
                    f"{one.name}: its console does not answer: {error.strerror}"
                ) from error
        except NagayaError as error:
            await refuse(socket, error)
            return
        try:
            await socket.accept()
            await first_of(_to_client(socket, reader), _to_guest(socket, writer))
        finally:
            writer.close()

    return routes


async def _to_client(socket: WebSocket, reader: asyncio.StreamReader) -> None:
    while output := await reader.read(PIECE):
        await socket.send_bytes(output)
    await socket.close(1000, "the console was closed")


async def _to_guest(socket: WebSocket, writer: asyncio.StreamWriter) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        typed = message.get("bytes") or (message.get("text") or "").encode()
        writer.write(typed)
        await writer.drain()
