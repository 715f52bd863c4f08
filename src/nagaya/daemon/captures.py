"""The frames of a NIC for who wants to look at them: the plane writes pcap into a pipe, a client gets it.

A capture lasts as long as its client reads. The pipe has no name from the moment the plane has opened it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nagaya.daemon.ports import find
from nagaya.daemon.supervised import UP
from nagaya.errors import ConflictError, NagayaError, NotFoundError
from nagaya.models.network import CaptureInfo

if TYPE_CHECKING:
    from nagaya.daemon.daemon import Daemon
    from nagaya.daemon.parts import PlaneControl

PIPE = 2**20  # bytes; all that a user without privileges may have by default (pipe-max-size)
PIECE = 256 * 1024  # bytes read at once: some ms of work at most, with the smallest frames
ENDLESS = 2**62  # bytes; the limit of the plane, which would not end the capture
_HEADER, _RECORD = 24, 16  # bytes, of the file and before each frame (draft-ietf-opsawg-pcap)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a capture ends: bytes of each frame and in all, frames, seconds; None has no end."""

    snaplen: int
    size: int | None = None
    packets: int | None = None
    seconds: float | None = None


class Records:
    """Passes whole records of a pcap stream on, as far as `limits` allow: then it is `full`."""

    def __init__(self, limits: Limits) -> None:
        self.packets = 0
        self.full = False
        self._left = ENDLESS if limits.size is None else limits.size
        self._most = limits.packets
        self._rest = b""
        self._begun = False

    def take(self, piece: bytes) -> bytes:
        """What of all that has come so far, and was not passed on yet, may be passed on."""
        arrived = self._rest + piece
        end = 0
        while not self.full and (size := self._next(arrived, end)) <= len(arrived) - end:
            if size > self._left:
                self.full = True
                break
            end += size
            self._left -= size
            self.packets += self._begun
            self._begun = True
            self.full = self.packets == self._most
        self._rest = arrived[end:]
        return arrived[:end]

    def _next(self, arrived: bytes, begin: int) -> int:
        """Bytes of what begins there."""
        if not self._begun:
            return _HEADER
        if len(arrived) - begin < _RECORD:
            return _RECORD
        kept: int = struct.unpack_from("<I", arrived, begin + 8)[0]
        return _RECORD + kept


class Capture:
    """One capture. `close` it."""

    def __init__(self, plane: PlaneControl, device_id: str, limits: Limits) -> None:
        self._plane = plane
        self._device_id = device_id
        self._seconds = limits.seconds
        self._records = Records(limits)
        self._reader = asyncio.StreamReader(PIECE)
        self._transport: asyncio.BaseTransport | None = None
        self._counts: tuple[int, int] | None = None
        self._ended = False
        self._closed = False

    @property
    def info(self) -> CaptureInfo:
        """What it has come to."""
        passed = self._records.packets
        written, missed = self._counts or (passed, 0)
        packets = passed if self._records.full else max(passed, written)
        return CaptureInfo(packets, missed, not self._closed)

    async def read_from(self, fd: int) -> None:
        """Take the pipe's end `fd`, and own it."""
        pipe = os.fdopen(fd, "rb", buffering=0)
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file, whole frames at a time, until something ends it."""
        ends = None if self._seconds is None else time.monotonic() + self._seconds
        while not self._records.full:
            try:
                async with asyncio.timeout(None if ends is None else ends - time.monotonic()):
                    piece = await self._reader.read(PIECE)
            except TimeoutError:
                piece = b""
            if whole := self._records.take(piece):
                yield whole
            if ends is not None and time.monotonic() >= ends:
                ends = None
                await self.end()
            elif not piece:
                return

    async def end(self) -> CaptureInfo:
        """Have no more frames written; what was written still comes."""
        if not self._ended:
            self._ended = True
            with contextlib.suppress(NagayaError):  # the machine, or the plane, is gone
                self._counts = await self._plane.capture_stop(self._device_id)
        return self.info

    async def close(self) -> None:
        """End it; nobody reads any more. Idempotent."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()
        await self.end()


async def begin(daemon: Daemon, name: str, nic: str, limits: Limits) -> Capture:
    """Capture the frames of a NIC from now on. Raises `ConflictError` if somebody does that already."""
    one = daemon.supervisor.get(name)
    one.require(UP, "captured", hint=f"nagaya start {one.name}")
    plug = find(one, nic)
    plane, device_id = daemon.parts.plane, f"{one.row.id}/{plug.name}"
    fifo = daemon.paths.run / f"capture-{uuid.uuid4().hex}"
    os.mkfifo(fifo, 0o600)
    try:
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            with contextlib.suppress(
                OSError
            ):  # all pipes of a user are too large together: a small one, then
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE)
            await plane.capture_start(device_id, str(fifo), snaplen=limits.snaplen, limit=ENDLESS)
        except BaseException:
            os.close(fd)
            raise
    except ConflictError as error:
        raise ConflictError(
            f"somebody captures {one.name} {plug.name} already",
            hint="end that first, or capture another NIC",
            machine=one.name,
            nic=plug.name,
        ) from error
    finally:
        fifo.unlink()
    capture = one.captures[plug.name] = Capture(plane, device_id, limits)
    await capture.read_from(fd)
    return capture


async def end(daemon: Daemon, name: str, nic: str) -> CaptureInfo:
    """End the capture of a NIC; what it, or the last one, has come to."""
    one = daemon.supervisor.get(name)
    plug = find(one, nic)
    if plug.name not in one.captures:
        raise NotFoundError(
            f"{one.name} {plug.name} has not been captured",
            hint=f"nagaya network capture {one.name}",
            machine=one.name,
            nic=plug.name,
        )
    return await one.captures[plug.name].end()
