"""A log file that never grows over its limit, and its writer that never blocks the event loop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

_PENDING_LIMIT = 2**20  # bytes that wait for a slow disk; more would be host memory at the guest's command

log = logging.getLogger(__name__)


class CappedLog:
    """Appends to `path`; the older half is `path`.1. Both are 0600 and together at most `limit` bytes.

    On a full disk the oldest half goes first, then the newer one; what still cannot be written is counted in
    `dropped` (bytes) and the log goes on. A limit lowered since the last run takes effect as halves rotate.
    """

    def __init__(self, path: str, limit: int) -> None:
        self._path = Path(path)
        self._older = Path(path + ".1")
        self.dropped = 0
        self._half = limit // 2
        self._fd = _open(self._path)
        self._size = os.fstat(self._fd).st_size

    def append(self, output: bytes) -> None:
        """Write all of `output`, rotating as needed. Blocks. Raises `OSError` unless the disk is full."""
        rest = memoryview(output)[-2 * self._half :]
        while rest:
            try:
                if self._size >= self._half:
                    self._rotate()
                written = os.write(self._fd, rest[: self._half - self._size])
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not self._make_room():
                    self.dropped += len(rest)
                    return
                continue
            self._size += written
            rest = rest[written:]

    def __str__(self) -> str:
        return str(self._path)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _rotate(self) -> None:
        with suppress(FileNotFoundError):  # somebody removed the log, or the open below failed last time
            self._path.replace(self._older)
        newer = _open(self._path)
        os.close(self._fd)
        self._fd = newer
        self._size = os.fstat(self._fd).st_size

    def _make_room(self) -> bool:
        """Drop the oldest half that has anything. False if there is none left."""
        try:
            self._older.unlink()
            return True
        except FileNotFoundError:
            pass
        if self._size == 0:
            return False
        os.ftruncate(self._fd, 0)
        self._size = 0
        return True


class LogWriter:
    """Feeds a `CappedLog` from the event loop: one write in flight, in a thread of `pool`."""

    def __init__(self, target: CappedLog, pool: Executor) -> None:
        self._log = target
        self._pool = pool
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> int:
        """Bytes that are missing in the log: the disk was full, too slow, or failed."""
        return self._dropped + self._log.dropped

    def write(self, output: bytes) -> None:
        """Queue `output`. The oldest that waits is dropped when the disk does not keep up."""
        self._pending.append(output)
        self._pending_bytes += len(output)
        while self._pending_bytes > _PENDING_LIMIT:
            oldest = self._pending.popleft()
            self._pending_bytes -= len(oldest)
            self._dropped += len(oldest)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())

    async def close(self) -> None:
        """Write what waits, at most two seconds long, and close the file."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=2)
            if not self._task.done():  # the thread that hangs in the disk owns the file now
                log.warning("console log does not finish", extra={"path": str(self._log)})
                self._task.cancel()
                return
        self._log.close()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            output = b"".join(self._pending)
            self._pending.clear()
            self._pending_bytes = 0
            try:
                await loop.run_in_executor(self._pool, self._log.append, output)
            except OSError as error:
                self._dropped += len(output)
                log.warning("console log lost output", extra={"path": str(self._log), "error": str(error)})


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)
