"""Waiting for a process that may be anybody's child, safe against a reused number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Iterator

from nagaya.engines.engine import ProcessId
from nagaya.engines.procs import start_time_of


def alive(process: ProcessId) -> bool:
    """Whether that very process runs."""
    with pidfd(process) as fd:
        return fd is not None and not select.select([fd], [], [], 0)[0]


@contextlib.contextmanager
def pidfd(process: ProcessId) -> Iterator[int | None]:
    """A pidfd of that very process, or None if it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd if _start_time(process.pid) == process.start_time else None
    finally:
        os.close(fd)


async def ended(process: ProcessId, seconds: float | None) -> bool:
    """Wait until the process has ended; False at the timeout."""
    loop = asyncio.get_running_loop()
    with pidfd(process) as fd:
        if fd is None:
            return True
        gone = asyncio.Event()
        loop.add_reader(fd, gone.set)
        try:
            async with asyncio.timeout(seconds):
                await gone.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
    return True


def _start_time(pid: int) -> int | None:
    try:
        return start_time_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
