"""Hears from the kernel that routes, forwarding, interfaces or packet filter rules have changed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from nagaya.closing import Closing

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_ROUTE_GROUPS = (1, 7, 11, 24, 25)  # links, routes and forwarding of IPv4 and of IPv6
_NFTABLES_GROUPS = (7,)
_SETTLE_S = 0.3  # changes come in swarms
_BURST = 65536


class Watch(Closing):
    """Calls `changed` after each swarm of changes, one call at a time, in the running loop."""

    def __init__(self, changed: Callable[[], Awaitable[None]]) -> None:
        self._changed = changed
        self._event = asyncio.Event()
        self._sockets: list[socket.socket] = []
        self._loop = asyncio.get_running_loop()
        for protocol, groups in (
            (_NETLINK_ROUTE, _ROUTE_GROUPS),
            (_NETLINK_NETFILTER, _NFTABLES_GROUPS),
        ):
            one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self._sockets.append(one)
            one.setblocking(False)
            one.bind((0, 0))
            for group in groups:
                one.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
            self._loop.add_reader(one, self._drain, one)
        self._task = asyncio.create_task(self._run(), name="watch of the host's networks")

    def close(self) -> None:
        self._task.cancel()
        for one in self._sockets:
            self._loop.remove_reader(one)
            one.close()
        self._sockets = []

    def _drain(self, one: socket.socket) -> None:
        self._event.set()
        with contextlib.suppress(BlockingIOError, OSError):  # ENOBUFS: some were lost, which is news as well
            while one.recv(_BURST):
                pass

    async def _run(self) -> None:
        while True:
            await self._event.wait()
            await asyncio.sleep(_SETTLE_S)
            self._event.clear()
            await self._changed()
