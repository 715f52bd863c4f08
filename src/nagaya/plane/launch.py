"""Finds the running holder or starts one."""

from __future__ import annotations

import asyncio
import fcntl
import os

from nagaya.detached import log_tail, start_detached
from nagaya.errors import UnavailableError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient


async def ensure_holder(paths: Paths, timeout_seconds: float = 15) -> int:
    """The pid of the holder of `paths`, started and ready if none ran. It outlives the caller.

    Raises `UnavailableError` with the end of its log if it does not come up in time.
    """
    try:
        return await _holder_pid(paths)
    except UnavailableError:
        pass
    log = paths.state / "plane.log"
    try:
        async with asyncio.timeout(timeout_seconds):
            await start_detached("nagaya.plane", paths, log)
            await _outlast_a_rival(paths)
            return await _holder_pid(paths)
    except (TimeoutError, UnavailableError) as error:
        message = f"the plane's holder did not start within {timeout_seconds:g} s"
        raise UnavailableError(message, hint=f"the end of {log}:\n{log_tail(log)}") from error


async def _holder_pid(paths: Paths) -> int:
    async with await PlaneClient.connect(paths.plane_socket) as client:
        return await client.pid()


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
