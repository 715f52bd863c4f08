"""Locks on image files, byte for byte those of QEMU, so that QEMU's tools and the plane respect each other.

QEMU (block/file-posix.c) takes shared OFD locks on single bytes: byte 100 + p says "I use permission p", byte
200 + p says "nobody else may use permission p". Whoever finds a byte locked that contradicts it gives up.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_USED = 100
_UNSHARED = 200
_READ, _WRITE, _RESIZE = 0, 1, 3  # BLK_PERM_CONSISTENT_READ, _WRITE, _RESIZE as bit numbers

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64 and arm64: type, whence, start, length, pid


def lock_image(fd: int, *, writer: bool) -> bool:
    """Take the lock of an exclusive writer or of one of many readers. False, and no lock, if it is taken.

    The lock belongs to the open file description: duplicates of `fd` keep it, also in other processes.
    """
    used = (_READ, _WRITE, _RESIZE) if writer else (_READ,)
    unshared = (_WRITE, _RESIZE)
    for byte in (*(_USED + p for p in used), *(_UNSHARED + p for p in unshared)):
        _set(fd, fcntl.F_RDLCK, byte)
    if any(_contradicted(fd, _UNSHARED + p) for p in used) or any(
        _contradicted(fd, _USED + p) for p in unshared
    ):
        unlock_image(fd)
        return False
    return True


def unlock_image(fd: int) -> None:
    """Give the lock up, even while duplicates of `fd` are still open elsewhere."""
    _set(fd, fcntl.F_UNLCK, 0, 0)


def processes_using(fd: int) -> list[str]:
    """Other processes that have this file open, as "name (pid 12)", if the caller may look into them."""
    ours = os.fstat(fd)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) != os.getpid() and _has_open(process, ours):
            name = (process / "comm").read_text(errors="replace").strip()
            found.append(f"{name} (pid {process.name})")
    return sorted(found)


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    try:
        return any(os.path.samestat(link.stat(), wanted) for link in (process / "fd").iterdir())
    except OSError:  # it ended, or is not ours to look into
        return False


def _set(fd: int, kind: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _contradicted(fd: int, byte: int) -> bool:
    """Whether another description holds any lock on `byte`."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
