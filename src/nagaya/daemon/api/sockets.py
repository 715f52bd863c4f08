"""What the websocket routes share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from fastapi import WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from nagaya.errors import NagayaError


async def refuse(socket: WebSocket, error: NagayaError) -> None:
    """Answer the handshake with `error` instead of a connection."""
    await socket.send_denial_response(JSONResponse(error.to_json(), error.http_status))


async def send_events(socket: WebSocket, news: AsyncIterator[dict[str, Any]]) -> None:
    """Send `news` as JSON until it ends or the client goes."""

    async def send() -> None:
        async for event in news:
            await socket.send_json(event)

    await first_of(send(), _gone(socket))


async def first_of(*works: Awaitable[None]) -> None:
    """Run all until one ends, then end the others; a client that goes is no error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        error = task.exception()
        if error is not None and not isinstance(error, WebSocketDisconnect | ConnectionError):
            raise error


async def _gone(socket: WebSocket) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
