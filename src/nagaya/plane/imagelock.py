"""Locks on image files, byte for byte those of QEMU, so that QEMU's tools and the plane respect each other.

QEMU (block/file-posix.c) takes shared OFD locks on single bytes: byte 100 + p says "I use permission p", byte
200 + p says "nobody else may use permission p". Whoever finds a byte locked that contradicts it gives up. Two
who try at the same instant could both give up; among ours a lock on a byte of its own decides who goes first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_USED = 100
_UNSHARED = 200
_TURN = 300  # not QEMU's: held while one of ours locks and looks, for writing by those who may write
_TURN_TRIES = 50
_TURN_PAUSE = 0.001  # s; a turn takes some microseconds. Who hangs with it stops nobody: it only breaks ties
# BLK_PERM_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE as bit numbers
_READ, _WRITE, _UNCHANGED, _RESIZE = range(4)
_END = _UNSHARED + _RESIZE + 1  # of the bytes that mean something

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64 and arm64: type, whence, start, length, pid


class Access(StrEnum):
    """What an image is opened for."""

    WRITER = "writer"  # nobody else reads or writes
    READER = "reader"  # others read, nobody writes
    FILLER = "filler"  # others read, and see no difference; nobody else writes
    SHARED = "shared"  # all who write have agreed to it (QEMU's share-rw=on)


_BYTES: dict[Access, tuple[tuple[int, ...], tuple[int, ...]]] = {  # permissions used, and denied to others
    Access.WRITER: ((_READ, _WRITE, _RESIZE), (_WRITE, _RESIZE)),
    Access.READER: ((_READ,), (_WRITE, _RESIZE)),
    Access.FILLER: ((_READ, _UNCHANGED), (_WRITE, _UNCHANGED, _RESIZE)),
    Access.SHARED: ((_READ, _WRITE), (_RESIZE,)),
}


@dataclass(frozen=True, slots=True)
class User:
    """A process that has locked an image. `name` is its program's."""

    pid: int
    name: str
    nagaya: str = ""  # the run directory of the Nagaya whose plane it is
    since: float = field(default=0.0, compare=False)  # seconds of the epoch at which it began, 0 if unknown

    def __str__(self) -> str:
        if self.nagaya:
            return f"the plane of another Nagaya (pid {self.pid}, {self.nagaya})"
        if not self.since:
            return f"{self.name} (pid {self.pid})"
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"{self.name} (pid {self.pid}, on this host since {began})"


def lock_image(fd: int, access: Access) -> bool:
    """Take the lock. False, and no lock, if another holder's contradicts it.

    The lock belongs to the open file description: duplicates of `fd` keep it, also in other processes.
    """
    used, unshared = _BYTES[access]
    with _turn(fd):
        for byte in (*(_USED + p for p in used), *(_UNSHARED + p for p in unshared)):
            _set(fd, fcntl.F_RDLCK, byte)
        if any(_contradicted(fd, _UNSHARED + p) for p in used) or any(
            _contradicted(fd, _USED + p) for p in unshared
        ):
            unlock_image(fd)
            return False
    return True


def downgrade_image(fd: int) -> None:
    """Make a writer's lock a reader's, without a moment in which another could become the writer."""
    for permission in (_WRITE, _RESIZE):
        _set(fd, fcntl.F_UNLCK, _USED + permission)


def upgrade_image(fd: int) -> None:
    """Undo `downgrade_image`. Nobody can have become a writer meanwhile."""
    for permission in (_WRITE, _RESIZE):
        _set(fd, fcntl.F_RDLCK, _USED + permission)


def unlock_image(fd: int) -> None:
    """Give the lock up, even while duplicates of `fd` are still open elsewhere."""
    _set(fd, fcntl.F_UNLCK, 0, 0)


def is_free(path: str, access: Access) -> bool:
    """Whether a lock on the file at `path` could be taken now. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        used, unshared = _BYTES[access]
        wanted = (*(_UNSHARED + p for p in used), *(_USED + p for p in unshared))
        return not any(_contradicted(fd, byte) for byte in wanted)
    finally:
        os.close(fd)


def users_of(path: str) -> list[User]:
    """The processes that have locked the file at `path`, if the caller may look into them."""
    try:
        wanted = os.stat(path)  # noqa: PTH116  # one call for files and devices
    except OSError:
        return []
    processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name))
    return [
        _user(process)
        for process in processes
        if _has_locked(process, wanted) and not _is_worker(process)  # it shares its plane's locks
    ]


@contextlib.contextmanager
def _turn(fd: int) -> Iterator[None]:
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    kind = fcntl.F_WRLCK if writable else fcntl.F_RDLCK
    for _ in range(_TURN_TRIES):
        try:
            _set(fd, kind, _TURN)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        time.sleep(_TURN_PAUSE)
    try:
        yield
    finally:
        _set(fd, fcntl.F_UNLCK, _TURN)


def _has_locked(process: Path, wanted: os.stat_result) -> bool:
    try:
        links = list((process / "fd").iterdir())
    except OSError:  # it ended, or is not ours to look into
        return False
    return any(_is_locked(process, link, wanted) for link in links)


def _is_locked(process: Path, link: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(link.stat(), wanted) and _shows_lock(process / "fdinfo" / link.name)
    except OSError:  # closed meanwhile
        return False


def _shows_lock(fdinfo: Path) -> bool:
    """Whether a line `lock: 1: OFDLCK ADVISORY READ -1 DEV:INODE START END` has a byte of ours."""
    for line in fdinfo.read_text().splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and "OFDLCK" in words:
            start, end = words[-2:]
            if int(start) < _END and (end == "EOF" or int(end) >= _USED):
                return True
    return False


def _is_worker(process: Path) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(word.endswith(b"/nagaya/plane/worker.py") for word in arguments)


def _user(process: Path) -> User:
    try:
        name = (process / "comm").read_text(errors="replace").strip()
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        environment = (process / "environ").read_bytes().split(b"\0")
        ticks = int((process / "stat").read_text().rpartition(")")[2].split()[19])  # since the host's boot
        ours = process.stat().st_uid == os.geteuid()  # another user's may say of itself what it likes
    except OSError:
        return User(int(process.name), "a process that ended or hides")
    run = ""
    if ours and b"nagaya.plane" in arguments:
        settings = dict(entry.partition(b"=")[::2] for entry in environment)
        run = settings.get(b"NAGAYA_RUN_DIR", b"/run/nagaya").decode(errors="replace")
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return User(int(process.name), name, run, boot + ticks / os.sysconf("SC_CLK_TCK"))


def _set(fd: int, kind: int, start: int, length: int = 1) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _contradicted(fd: int, byte: int) -> bool:
    """Whether another description holds any lock on `byte`."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
