"""The plane's workers, once they run: the one that a test is about to kill must be there."""

from __future__ import annotations

import asyncio
import time

from nagaya.plane.client import PlaneClient

_PATIENCE_S = 60.0


async def worker_pids(client: PlaneClient) -> dict[str, int]:
    """The process of each worker, by name, as soon as all of them run. Raises `TimeoutError`."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        workers = await client.query_workers()
        pids = {worker.name: worker.pid for worker in workers if worker.pid is not None}
        if len(pids) == len(workers):
            return pids
        await asyncio.sleep(0.002)
    raise TimeoutError(f"not all workers run after {_PATIENCE_S} s: {workers}")
