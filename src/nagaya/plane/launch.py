"""Finds the running holder or starts one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from pathlib import Path

from nagaya.errors import UnavailableError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient

_LOG_LIMIT = 4 * 2**20  # bytes of plane.log before a start moves it to plane.log.1
_TAIL_BYTES = 2000


async def ensure_holder(paths: Paths, timeout_seconds: float = 15) -> int:
    """The pid of the holder of `paths`, started and ready if none ran. It outlives the caller.

    Raises `UnavailableError` with the end of its log if it does not come up in time.
    """
    try:
        return await _holder_pid(paths)
    except UnavailableError:
        pass
    try:
        async with asyncio.timeout(timeout_seconds):
            await _start(paths)
            return await _holder_pid(paths)
    except (TimeoutError, UnavailableError) as error:
        path = paths.state / "plane.log"
        message = f"the plane's holder did not start within {timeout_seconds:g} s"
        raise UnavailableError(message, hint=f"the end of {path}:\n{_tail(path)}") from error


async def _holder_pid(paths: Paths) -> int:
    async with await PlaneClient.connect(paths.plane_socket) as client:
        return await client.pid()


async def _start(paths: Paths) -> None:
    """Start a holder and wait until it, or one that was started at the same time, is ready or failed."""
    ready, ready_write = os.pipe()
    os.set_blocking(ready, False)
    try:
        log = _open_log(paths)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "nagaya.plane", "--detach", "--ready-fd", str(ready_write),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
                pass_fds=[ready_write], env=_environment(paths),
            )  # fmt: skip
        finally:
            os.close(log)
            os.close(ready_write)
        await process.wait()  # the parent half; the holder itself is nobody's child
        await _readable(ready)
    finally:
        os.close(ready)
    await _outlast_a_rival(paths)


async def _outlast_a_rival(paths: Paths) -> None:
    """Ours may have lost the lock to a holder that is not ready yet: wait for that one."""
    while True:
        try:
            await _holder_pid(paths)
            return
        except UnavailableError:
            if not _locked(paths):
                raise
        await asyncio.sleep(0.02)


def _locked(paths: Paths) -> bool:
    try:
        fd = os.open(paths.run / "plane.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


async def _readable(fd: int) -> None:
    """Wait until a line or the end comes through the pipe `fd`."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(fd)


def _environment(paths: Paths) -> dict[str, str]:
    package = str(Path(__file__).parents[2])  # a checkout that is on sys.path but not installed
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | paths.environment() | {"PYTHONPATH": f"{package}:{known}" if known else package}


def _open_log(paths: Paths) -> int:
    paths.state.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = paths.state / "plane.log"
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.replace(path.with_name("plane.log.1"))
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return log.read().decode(errors="replace").strip()
