"""The host side of a console: its clients, log and pty, and the guest agent's one client.

The guest's side is port 0 of a virtio-console, or a serial port whose machine connects to a socket of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from concurrent.futures import Executor

from nagaya.plane.caplog import CappedLog, LogWriter
from nagaya.plane.config import ConsoleDevice
from nagaya.plane.peer import Peer, adopt
from nagaya.plane.sockets import Listener
from nagaya.plane.terminal import Terminal

SCROLLBACK_BYTES = 8192
_CLIENT_BUFFER = 256 * 1024  # output that waits for one slow client
_GUEST_BUFFER = 64 * 1024  # input that waits for a guest that does not read
_LAST_WORDS = 256 * 1024  # more than the stream's socket holds (net.core.wmem_default is 208 KiB)
_CLIENTS = 32  # of one console: each may hold _CLIENT_BUFFER
_RATE = (
    16 * 2**20
)  # bytes per second of one console: a guest that never stops printing costs a share of one CPU
_BURST_SECONDS = 1 / 16
_PIECE = 256  # bytes that a packet counts at least: a guest may print byte by byte

log = logging.getLogger(__name__)


class ConsolePort:
    """Port 0: output goes to the log, the pty and every client; everybody may type.

    A client that joins gets the last 8 KiB first, from the start of a line. A client that does not keep up
    misses output and is told how much.
    """

    def __init__(self, device: ConsoleDevice, pool: Executor) -> None:
        self.output_bytes = 0
        self.input_bytes = 0
        self.skipped_bytes = 0
        self.clients: set[Peer] = set()
        self._id = device.id
        self._scrollback = bytearray()
        self._scrollback_cut = False
        self._guest = Peer(self, _GUEST_BUFFER)
        self._clear_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._servers: list[asyncio.Server] = []
        self._log = LogWriter(CappedLog(device.log, device.log_limit), pool)
        self.terminal = _open_terminal(self._type, device.id)

    async def open(self, listener: Listener, guest: socket.socket | Listener) -> None:
        """Start to serve. `guest` is the host's end of the port, owned from now on, or where the guest's
        machine will connect its serial port."""
        if isinstance(guest, Listener):
            await self._serve(guest, self._next_guest)
        else:
            adopt(self._guest, guest)
        await self._serve(listener, lambda: Peer(self, _CLIENT_BUFFER))

    async def _serve(self, listener: Listener, peer: Callable[[], Peer]) -> None:
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(peer, sock=listener.socket))

    def _next_guest(self) -> Peer:
        """A machine that connects again has lost its first connection: the newest is the one."""
        self._guest.abort()
        self._guest = Peer(self, _GUEST_BUFFER)
        self.peer_slow(self._guest, False)
        return self._guest

    @property
    def log_dropped_bytes(self) -> int:
        """Output that is missing in the log."""
        return self._log.dropped

    async def close(self) -> None:
        """Hang up on everybody and finish the log. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for server in self._servers:
            server.close()
        last_words = self._guest.take_rest(_LAST_WORDS)  # a guest that just went down said why
        if last_words:
            self._print(last_words)
            if self._timer is not None:
                self._timer.cancel()
        for peer in (self._guest, *self.clients):
            peer.abort()
        if self.terminal is not None:
            self.terminal.close()
        await self._log.close()

    def peer_connected(self, peer: Peer) -> None:
        if peer is self._guest:
            return
        if len(self.clients) >= _CLIENTS:
            log.warning("console has too many clients", extra={"device": self._id, "limit": _CLIENTS})
            peer.abort()
            return
        self.clients.add(peer)
        peer.send(self._recent())

    def peer_sent(self, peer: Peer, chunk: bytes) -> None:
        if peer is self._guest:
            self._print(chunk)
        else:
            self._type(chunk)
            peer.set_reading(not self._guest.slow)

    def peer_slow(self, peer: Peer, slow: bool) -> None:
        if peer is self._guest:
            for typist in (*self.clients, self.terminal):
                if typist is not None:
                    typist.set_reading(not slow)
        elif not slow and peer.skipped:
            peer.send(
                b"\r\n[nagaya: %d bytes of output skipped, this terminal was too slow]\r\n" % peer.skipped
            )
            peer.skipped = 0

    def peer_lost(self, peer: Peer) -> None:
        self.clients.discard(peer)

    def _print(self, chunk: bytes) -> None:
        self.output_bytes += len(chunk)
        self._remember(chunk)
        for client in self.clients:
            if client.slow:
                client.skipped += len(chunk)
                self.skipped_bytes += len(chunk)
            else:
                client.send(chunk)
        if self.terminal is not None:
            self.terminal.show(chunk)
        self._log.write(chunk)
        self._throttle(max(len(chunk), _PIECE * self._guest.pieces))

    def _type(self, typed: bytes) -> None:
        self.input_bytes += len(typed)
        self._guest.send(typed)

    def _throttle(self, size: int) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._clear_at = max(self._clear_at, now) + size / _RATE
        if self._clear_at - now > _BURST_SECONDS:
            self._guest.set_reading(False)
            self._timer = loop.call_at(self._clear_at, self._guest.set_reading, True)

    def _remember(self, chunk: bytes) -> None:
        self._scrollback += chunk[-SCROLLBACK_BYTES:]
        if len(self._scrollback) > SCROLLBACK_BYTES or len(chunk) > SCROLLBACK_BYTES:
            self._scrollback_cut = True
            del self._scrollback[:-SCROLLBACK_BYTES]

    def _recent(self) -> bytes:
        start = (
            self._scrollback.find(b"\n") + 1 if self._scrollback_cut else 0
        )  # 0 too when no line ends in it
        return bytes(self._scrollback[start:])


class AgentPort:
    """Port 1: bytes both ways between the guest agent and at most one client; another is hung up on at once.

    What the guest says while nobody listens is dropped: it answers a client that has gone.
    """

    def __init__(self, device: ConsoleDevice) -> None:
        self.client: Peer | None = None
        self._id = device.id
        self._guest = Peer(self, _GUEST_BUFFER)
        self._server: asyncio.Server | None = None

    async def open(self, guest: socket.socket, listener: Listener) -> None:
        """Start to serve; `guest`, the host's end of the port, is owned from now on."""
        adopt(self._guest, guest)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Peer(self, _CLIENT_BUFFER), sock=listener.socket)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._server is not None:
            self._server.close()
        self._guest.abort()
        if self.client is not None:
            self.client.abort()

    def peer_connected(self, peer: Peer) -> None:
        if peer is self._guest:
            return
        if self.client is not None:
            peer.abort()
            return
        self.client = peer

    def peer_sent(self, peer: Peer, chunk: bytes) -> None:
        other = self.client if peer is self._guest else self._guest
        if other is not None and peer in (self._guest, self.client):
            other.send(chunk)
            peer.set_reading(not other.slow)

    def peer_slow(self, peer: Peer, slow: bool) -> None:
        other = self.client if peer is self._guest else self._guest
        if other is not None:
            other.set_reading(not slow)

    def peer_lost(self, peer: Peer) -> None:
        if peer is self.client:
            self.client = None
            self._guest.set_reading(True)


class ConsoleHub:
    """Everything on the host's side of one console device. `guest_ends` go to the plane's Rust half."""

    def __init__(self, device: ConsoleDevice, pool: Executor) -> None:
        self.device = device
        self._pool = pool
        self._stack = contextlib.AsyncExitStack()
        self.guest_ends: list[socket.socket] = []

    async def open(self) -> None:
        """Make the port streams, the log, the pty and the sockets. Nothing is left when it fails."""
        try:
            console_listener = self._stack.enter_context(Listener(self.device.console_socket))
            agent_listener = self._stack.enter_context(Listener(self.device.agent_socket))
            guest = self._guest_side()
            self.console = ConsolePort(self.device, self._pool)
            self._stack.push_async_callback(self.console.close)
            await self.console.open(console_listener, guest)
            self.agent = AgentPort(self.device)
            agent_guest = self._stream()
            self._stack.push_async_callback(self.agent.close)
            await self.agent.open(agent_guest, agent_listener)
        except BaseException:
            await self.close()
            raise

    def release_guest_ends(self) -> None:
        """Close our copies once the Rust half has its own, so that its hang-up is seen. Idempotent."""
        for end in self.guest_ends:
            end.close()
        self.guest_ends.clear()

    def describe(self) -> dict[str, object]:
        """An element of `query-consoles`. Byte counts are since the device was added."""
        terminal = self.console.terminal
        return {
            "id": self.device.id,
            "pty": terminal.path if terminal is not None else "",
            "clients": len(self.console.clients),
            "agent_busy": self.agent.client is not None,
            "output_bytes": self.console.output_bytes,
            "input_bytes": self.console.input_bytes,
            "skipped_bytes": self.console.skipped_bytes,
            "log_dropped_bytes": self.console.log_dropped_bytes,
        }

    async def close(self) -> None:
        """Idempotent."""
        self.release_guest_ends()
        await self._stack.aclose()

    def _guest_side(self) -> socket.socket | Listener:
        device = self.device
        if not device.serial_socket:
            return self._stream()
        serial = Listener(device.serial_socket, uid=device.uid, gid=device.gid, backlog=1)
        return self._stack.enter_context(serial)

    def _stream(self) -> socket.socket:
        host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.guest_ends.append(guest)
        self._stack.callback(host.close)  # for when nobody comes to own it
        return host


def _open_terminal(on_input: Callable[[bytes], None], device_id: str) -> Terminal | None:
    try:
        return Terminal(on_input)
    except OSError as error:
        log.warning("console has no pty", extra={"device": device_id, "error": str(error)})
        return None
