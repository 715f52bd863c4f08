"""The plane's holder process: one a host, owner of every fd that outlives a worker or the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from nagaya import __version__, oom
from nagaya.errors import ConflictError
from nagaya.paths import Paths
from nagaya.plane import worker
from nagaya.plane.log import log_to_stderr
from nagaya.plane.service import Core, Service
from nagaya.plane.sockets import Listener
from nagaya.qmp import QmpServer

log = logging.getLogger("nagaya.plane")


def run(paths: Paths, ready_fd: int = -1) -> None:
    """Be the holder until SIGTERM or `quit`. Raises `ConflictError` if another has these directories."""
    log_to_stderr()
    _leave_terminal()
    _raise_file_limit()
    oom.protect_self()
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _lock(paths.run / "plane.lock"), Listener(str(paths.plane_socket), backlog=64) as listener:
        asyncio.run(serve(listener.socket, _core(), lambda: _tell_ready(ready_fd)))


async def serve(listener: socket.socket, core: Core, on_ready: Callable[[], None]) -> None:
    """Serve QMP on `listener` with the devices of `core`, which is closed at the end."""
    stop = asyncio.Event()
    server = QmpServer(__version__)
    service = Service(core, server.emit, stop.set)
    server.commands.update(service.commands)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    service.start()
    clients = asyncio.create_task(server.serve(listener))
    log.info("plane ready", extra={"pid": os.getpid(), "version": __version__})
    on_ready()
    try:
        await stop.wait()
        devices, machines = service.device_count, sorted(service.machines)
        log.warning(
            "plane stops; machines lose their devices", extra={"devices": devices, "machines": machines}
        )
        server.emit("SHUTDOWN", {"devices": devices, "machines": machines})
    finally:
        clients.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await clients
        await service.close()
        loop.remove_signal_handler(signal.SIGTERM)
        log.info("plane stopped")


def _core() -> Core:
    from nagaya import _core

    if _core.__file__ is None:
        raise ImportError("nagaya._core has no file")
    return _core.Plane([sys.executable, "-I", "-S", worker.__file__, _core.__file__])


def _leave_terminal() -> None:
    """A ctrl-C in the terminal that the holder was started from is not meant for it, nor for its workers."""
    with contextlib.suppress(PermissionError):  # already the leader of its process group
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _raise_file_limit() -> None:
    """A machine costs about 40 fds here; the soft limit is 1024 on most hosts, for the sake of select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            message = f"another plane holder (pid {owner}) has {path.parent}"
            raise ConflictError(message, hint="stop it first, or set NAGAYA_RUN_DIR", pid=owner) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _tell_ready(fd: int) -> None:
    if fd >= 0:
        with contextlib.suppress(BrokenPipeError):  # whoever waited has gone; the plane serves anyway
            os.write(fd, b"ready\n")
        os.close(fd)
    address = os.environ.get("NOTIFY_SOCKET", "")  # sd_notify(3)
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
