"""uvicorn on our socket, with our signals, and each connection's peer in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nagaya.daemon.endpoint import peer

GRACE = 5  # s that open requests have when the daemon ends; followers of logs and consoles are cut then

log = logging.getLogger("nagaya.daemon.access")


class _Protocol(H11Protocol):
    """Says who asks: a unix socket's peer is a process and a user, told by the kernel."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        pid, uid = peer(transport.get_extra_info("socket"))
        self.client = (f"uid {uid}", pid)
        log.debug("connection", extra={"peer_pid": pid, "peer_uid": uid})


class _Server(uvicorn.Server):
    """Leaves signals to the daemon, and tells when it serves."""

    ready: Callable[[], None]

    def stop(self) -> None:
        """End gracefully; asked twice, at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not ours to capture."""
        yield


def make_server(app: FastAPI, ready: Callable[[], None]) -> _Server:
    """The server of `app`; `ready` is called when it accepts."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="websockets-sansio",
        ws_max_size=2**20,
        ws_per_message_deflate=False,
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    server.ready = ready
    return server
