"""The host's end of a console's port: packets that say where in the stream they are.

A packet is the position of its first byte, 8 bytes little-endian, and bytes
(crates/plane/src/console/port.rs). A worker that takes over from a killed one sends again what was not
completed; what has come already is dropped here. To the guest it is the other way round: a worker leaves a
packet in the socket until the guest has it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any

PACKET = 4096  # bytes to the guest in one packet: what a tty takes at once
_HEADER = 8
_LONGEST = _HEADER + 32 * 1024  # of a worker's
_AT_ONCE = 32  # packets read in one turn, so that a guest that prints byte by byte holds up nobody


class PacketTransport(asyncio.Transport):
    """A stream over packets, for an `asyncio.Protocol`. It owns `stream`."""

    def __init__(self, stream: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__({"socket": stream})
        stream.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._socket = stream
        self._protocol = protocol
        self.packets = 0  # that the last delivery came in
        self._had = 0  # where the stream from the guest goes on
        self._sent = 0  # bytes put into the socket for the guest
        self._waiting: deque[bytes] = deque()  # pieces of at most PACKET bytes
        self._size = 0  # of those
        self._high = 64 * 1024
        self._full = False
        self._closing = False
        protocol.connection_made(self)
        self._loop.add_reader(stream, self._readable)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send `data`, now or when there is room."""
        if self._closing:
            return
        self._waiting.extend(bytes(data[at : at + PACKET]) for at in range(0, len(data), PACKET))
        self._size += len(data)
        self._flush()
        if not self._full and self._size > self._high:
            self._full = True
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Above `high` bytes the protocol is asked to pause, until none is left (`low` is always 0)."""
        self._high = self._high if high is None else high

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        """Read on."""
        if not self._closing:
            self._loop.add_reader(self._socket, self._readable)

    def read_rest(self, limit: int) -> bytes:
        """What came and was not delivered yet, at most `limit` bytes. The stream is to be aborted then."""
        rest = bytearray()
        while len(rest) < limit and (bytes_ := self._receive()) is not None:
            rest += bytes_
        return bytes(rest[:limit])

    def is_closing(self) -> bool:
        """Whether it was aborted."""
        return self._closing

    def close(self) -> None:
        """The same as `abort`: nobody waits for a guest that does not read."""
        self.abort()

    def abort(self) -> None:
        """Close; what waits is lost. Idempotent."""
        if not self._closing:
            self._closing = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        self._socket.close()
        self._protocol.connection_lost(None)

    def _readable(self) -> None:
        came = bytearray()
        for self.packets in range(_AT_ONCE):
            received = self._receive()
            if received is None:
                break
            came += received
        else:
            self.packets = _AT_ONCE
        if came:
            self._protocol.data_received(bytes(came))

    def _receive(self) -> bytes | None:
        """The next packet's bytes that have not come before; None if there is no packet."""
        try:
            packet = self._socket.recv(_LONGEST)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            packet = b""
        if not packet:  # the worker's end and its copies are closed
            self.abort()
            return None
        position = int.from_bytes(packet[:_HEADER], "little")
        fresh = packet[_HEADER + max(0, self._had - position) :]
        self._had = max(self._had, position + len(packet) - _HEADER)
        return fresh

    def _flush(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            try:
                self._socket.send(self._sent.to_bytes(_HEADER, "little") + piece)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket, self._writable)
                return
            except OSError:
                self.abort()
                return
            self._waiting.popleft()
            self._sent += len(piece)
            self._size -= len(piece)

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._flush()
        if self._full and not self._waiting and not self._closing:
            self._full = False
            self._protocol.resume_writing()
