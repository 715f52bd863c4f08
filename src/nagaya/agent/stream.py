"""One connection to a qemu-guest-agent: synchronised, line by line, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Mapping
from typing import Self

_SENTINEL = b"\xff"  # guest-sync-delimited: resets the agent's parser, and marks its answer
_NOISE_LIMIT = 2**20  # bytes before the synchronised answer: what an earlier client left unread
_SYNC_SECONDS = 0.25  # a sync sent before the guest opened its port may be lost, so it is repeated
_BUSY_SECONDS = 0.02
_THREAD_BYTES = 2**20  # a longer answer is parsed in a thread, not to stall the event loop


class Refusal(Exception):  # noqa: N818
    """The agent answered with an error."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(description)
        self.kind = kind
        self.description = description


class AgentStream:
    """Commands out, answers in, one at a time.

    Raises `OSError` and `EOFError` for a lost connection and `ValueError` for an answer that breaks the
    protocol; the stream is of no use after either.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect and synchronise, for as long as it takes; the caller has the deadline.

        It takes until there is an agent, and while another client has it: the plane hangs up then.
        """
        while True:
            stream = cls(*await asyncio.open_unix_connection(path))
            try:
                await stream._synchronise()
                return stream
            except (EOFError, ConnectionResetError, BrokenPipeError):
                await stream.close()
            except BaseException:
                await stream.close()
                raise
            await asyncio.sleep(_BUSY_SECONDS)

    def send(self, command: str, arguments: Mapping[str, object] | None = None) -> None:
        """Queue a command; the size is the caller's to bound."""
        message = {"execute": command} | ({"arguments": dict(arguments)} if arguments else {})
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def answer(self, limit: int) -> object:
        """What the next answer returns. Raises `Refusal` for an error."""
        line = await self._line(limit)
        while line.startswith(_SENTINEL):  # a sync's answer once more: the plane's worker died over it
            line = await self._line(limit)
        if len(line) > _THREAD_BYTES:
            return await asyncio.to_thread(_unwrap, line)
        return _unwrap(line)

    async def close(self) -> None:
        """Idempotent."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _synchronise(self) -> None:
        attempts = 0
        while True:
            attempts += 1
            try:
                async with asyncio.timeout(_SYNC_SECONDS):
                    await self._sync()
                break
            except TimeoutError:
                continue
        if attempts > 1:  # answers to the earlier ones may follow; this one comes after them
            await self._sync()

    async def _sync(self) -> None:
        number = random.randrange(2**31)  # noqa: S311
        self._writer.write(_SENTINEL)
        self.send("guest-sync-delimited", {"id": number})
        skipped = 0
        while True:
            line = await self._line(_NOISE_LIMIT)
            _, sentinel, rest = line.rpartition(_SENTINEL)
            if sentinel:
                with contextlib.suppress(ValueError, Refusal):
                    if _unwrap(rest) == number:
                        return
            skipped += len(line)
            if skipped > _NOISE_LIMIT:
                raise ValueError(f"no answer to guest-sync-delimited in {skipped} bytes")

    async def _line(self, limit: int) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise ValueError(f"an answer is over {limit} bytes")
            chunk = await self._reader.read(65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        if end > limit:
            raise ValueError(f"an answer is over {limit} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _unwrap(line: bytes) -> object:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{line[:80]!r} is not JSON") from error
    if isinstance(message, dict):
        if "return" in message:
            return message["return"]
        refusal = message.get("error")
        if isinstance(refusal, dict):
            raise Refusal(str(refusal.get("class"))[:80], str(refusal.get("desc"))[:1000])
    raise ValueError(f"{line[:80]!r} is neither a return nor an error")
