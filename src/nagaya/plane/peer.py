"""One end of a byte stream whose other end may be slow, silent or gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Protocol, cast

from nagaya.plane.packets import PacketTransport


class PeerOwner(Protocol):
    """What a `Peer` calls, always from the event loop."""

    def peer_connected(self, peer: Peer) -> None:
        """The stream is ready."""

    def peer_sent(self, peer: Peer, chunk: bytes) -> None:
        """`chunk` arrived."""

    def peer_slow(self, peer: Peer, slow: bool) -> None:
        """The peer's buffer passed its limit (`slow`) or drained again."""

    def peer_lost(self, peer: Peer) -> None:
        """The stream is closed. Nothing is called after this."""


class Peer(asyncio.Protocol):
    """A stream with a bounded output buffer: `slow` is set above `limit` bytes, cleared when all went out."""

    def __init__(self, owner: PeerOwner, limit: int) -> None:
        self._owner = owner
        self._limit = limit
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self.slow = False
        self.skipped = 0  # bytes that the owner did not send because the peer was slow

    @property
    def pieces(self) -> int:
        """How many packets the last chunk came in; 1 of a stream."""
        return self._transport.packets if isinstance(self._transport, PacketTransport) else 1

    def send(self, chunk: bytes) -> None:
        """Queue `chunk`. The owner looks at `slow` first."""
        if self._transport is not None:
            self._transport.write(chunk)

    def set_reading(self, reading: bool) -> None:
        """Read on, or leave what the peer sends in its socket."""
        if self._transport is None or reading == self._reading or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def take_rest(self, limit: int) -> bytes:
        """What arrived and was not delivered yet, at most `limit` bytes. The stream is to be aborted then."""
        if self._transport is None or self._transport.is_closing():
            return b""
        self.set_reading(False)
        if isinstance(self._transport, PacketTransport):
            return self._transport.read_rest(limit)
        stream = self._transport.get_extra_info("socket").fileno()
        rest = bytearray()
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while len(rest) < limit and (piece := os.read(stream, limit - len(rest))):
                rest += piece
        return bytes(rest)

    def abort(self) -> None:
        """Close at once; what is queued is lost. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limit, low=0)
        self._owner.peer_connected(self)

    def data_received(self, data: bytes) -> None:
        self._owner.peer_sent(self, data)

    def pause_writing(self) -> None:
        self.slow = True
        self._owner.peer_slow(self, True)

    def resume_writing(self) -> None:
        self.slow = False
        self._owner.peer_slow(self, False)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._owner.peer_lost(self)


def adopt(peer: Peer, port: socket.socket) -> None:
    """Let `peer` speak over a port's packets; `port` is owned from now on."""
    PacketTransport(port, peer)
