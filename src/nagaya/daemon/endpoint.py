"""The daemon's lock and its listening socket: one daemon for a state directory, and who may talk to it."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nagaya.errors import ConflictError, PermissionDeniedError, ResourceError
from nagaya.paths import Paths

GROUP = "nagaya"  # its members may use the socket
BACKLOG = 128


def make_directories(paths: Paths) -> None:
    """The directories of this Nagaya. Raises `PermissionDeniedError`."""
    try:
        for directory in (paths.run, paths.state, paths.cache):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionDeniedError(
            f"{error.filename} cannot be made by user {os.geteuid()}",
            hint="run as root, or set NAGAYA_RUN_DIR, NAGAYA_STATE_DIR and NAGAYA_CACHE_DIR",
        ) from error
    except OSError as error:
        raise ResourceError(f"{error.filename} cannot be made: {error.strerror}") from error


@contextmanager
def locked(paths: Paths) -> Iterator[None]:
    """Hold the state directory. Raises `ConflictError` naming the daemon that has it."""
    path = paths.state / "daemon.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise ConflictError(
                f"another daemon, process {holder or 'unknown'}, uses {paths.state}",
                hint="stop it first, or set NAGAYA_STATE_DIR and NAGAYA_RUN_DIR to other directories",
                pid=int(holder) if holder.isdigit() else None,
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, for root and the group `nagaya` (0660), or for this user alone (0600).

    A stale socket is replaced. Raises `ConflictError` if somebody answers on it.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        group = _group()
        if group is not None:
            os.chown(path, 0, group)
            path.chmod(0o660)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ResourceError(f"the socket {path} cannot be made: {error.strerror or error}") from error
    return listener


def peer(connection: socket.socket) -> tuple[int, int]:
    """The pid and uid of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(credentials[:4], "little", signed=True)
    return pid, int.from_bytes(credentials[4:8], "little")


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        probe.connect(str(path))
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise ResourceError(f"{path} is in the way: {error.strerror}") from error
        path.unlink(missing_ok=True)
    else:
        pid, _ = peer(probe)
        raise ConflictError(
            f"another daemon, process {pid}, answers at {path}",
            hint="stop it first, or set NAGAYA_RUN_DIR to another directory",
            pid=pid,
        )
    finally:
        probe.close()


def _group() -> int | None:
    if os.geteuid() != 0:
        return None
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
