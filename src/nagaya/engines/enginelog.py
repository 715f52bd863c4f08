"""The log of a machine's process: a pipe that the zygote drains into a file of bounded size."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CHUNK = 4096
_TAIL = 16 * 1024  # the end is what tells why a machine died


class EngineLog:
    """Drains the read end of a pipe into `path`.

    The first `limit` bytes go to the file at once; of what follows the last 16 KiB are kept and written when
    the process has ended. A writer that floods it waits for the pipe and costs at most one read a `drain`.
    """

    def __init__(self, path: Path, limit: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name(path.name + ".1"))
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_fd, True)
        self._left = limit
        self._tail = b""
        self._dropped = 0

    def fileno(self) -> int:
        return self._fd

    @property
    def flooded(self) -> bool:
        """Whether the file is full: drain it seldom from now on."""
        return self._left == 0

    def close_writer(self) -> None:
        """Close our copy of the write end, once the child has its own."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def drain(self) -> bool:
        """Take one chunk. False at end of file; True also if there is nothing to read."""
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return True
        head = chunk[: self._left]
        self._left -= len(head)
        self._write(head)
        kept = self._tail + chunk[len(head) :]
        self._dropped += max(0, len(kept) - _TAIL)
        self._tail = kept[-_TAIL:]
        return bool(chunk)

    def close(self) -> None:
        """Take what is left in the pipe, write the tail, close everything. Idempotent."""
        if self._fd < 0:
            return
        self.close_writer()
        for _ in range(64):  # a pipe holds 64 KiB; a process that outlived its parent may still write
            if not self.drain():
                break
        if self._dropped:
            self._write(f"\n[{self._dropped} bytes left out]\n".encode())
        self._write(self._tail)
        os.close(self._fd)
        os.close(self._file)
        self._fd = -1

    def _write(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the zygote; the machine runs on
            if chunk:
                os.write(self._file, chunk)
