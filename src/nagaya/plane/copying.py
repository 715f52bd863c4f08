"""A copy of a disk as a job of the plane, from its start to its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from nagaya.errors import ResourceError, UnavailableError
from nagaya.plane.client import JobStatus, PlaneClient
from nagaya.plane.config import CopyJob, Layer
from nagaya.progress import Progress

_LOOK_S = 0.2  # between two looks at how far it is


async def copy(plane: PlaneClient, layers: Sequence[Layer], target: str, progress: Progress) -> None:
    """Copy what `layers` hold, top first, into the raw file `target`; its node is below `%copy`.

    Cancelled, it ends the job; what it has copied stays. Raises as `PlaneClient.job_start`, and
    `ResourceError` if it fails on the way.
    """
    job = CopyJob(f"export-{uuid.uuid4().hex[:8]}", tuple(layers), target)
    progress("copy", 0.0)
    await plane.job_start(job)
    try:
        while (status := await _status(plane, job.id)).status != "concluded":
            if status.total_bytes:
                progress("copy", status.current_bytes / status.total_bytes)
            await asyncio.sleep(_LOOK_S)
    except BaseException:
        await asyncio.shield(plane.job_cancel(job.id))
        raise
    if status.error is not None:
        raise ResourceError(f"the copy to {target} failed: {status.error}", path=target)


async def _status(plane: PlaneClient, job_id: str) -> JobStatus:
    for status in await plane.query_jobs():
        if status.id == job_id:
            return status
    raise UnavailableError(f"the plane has forgotten job {job_id}", hint="it was restarted; try again")
