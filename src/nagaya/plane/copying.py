"""Host work on disks as jobs of the plane, from their start to their end."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from nagaya.errors import ResourceError, UnavailableError
from nagaya.plane.client import JobStatus, PlaneClient
from nagaya.plane.config import CopyJob, Layer
from nagaya.progress import Progress

_LOOK_S = 0.2  # between two looks at how far it is
# What a copy leaves free: these bytes, or this share of a small file system.
_SPACE_KEPT, _SPACE_SHARE = 256 * 2**20, 0.02
_NODE = re.compile(r"%copy/(?P<verb>[a-z]+):(?P<disk>[^:@]+)(?:@(?P<snapshot>[^:]+))?:[0-9a-f]+")


def work(
    verb: str,
    disk: str,
    layers: Sequence[Layer],
    target: Sequence[Layer],
    *,
    snapshot: str = "",
    top_only: bool = False,
    keep: bool = False,
    unlike: Sequence[Layer] = (),
) -> CopyJob:
    """A job whose id says what it is: `verb` is \"merge\" and the like, `disk` as people call it."""
    subject = disk.replace("/", ".") + (f"@{snapshot}" if snapshot else "")
    return CopyJob(
        f"{verb}:{subject}:{uuid.uuid4().hex[:8]}",
        tuple(layers),
        tuple(target),
        top_only=top_only,
        keep=keep,
        unlike=tuple(unlike),
    )


def title(node: str) -> str:
    """What a node of host work is in words: `merge of db/disk0`; the node itself if it is none."""
    found = _NODE.fullmatch(node)
    if found is None:
        return node.removeprefix("%")
    disk = found["disk"].replace(".", "/")
    snapshot = f"snapshot {found['snapshot']} of " if found["snapshot"] else ""
    return f"{found['verb']} of {snapshot}{disk}"


async def run(plane: PlaneClient, job: CopyJob, step: str, progress: Progress) -> None:
    """Do `job`, with the progress of `step`; its node is below `%copy`.

    Cancelled, it ends the job; what it has copied stays. Raises as `PlaneClient.job_start`, and
    `ResourceError` if it fails on the way, or would leave little space for others.
    """
    progress(step, 0.0)
    await plane.job_start(job)
    try:
        while (status := await _status(plane, job.id)).status != "concluded":
            if status.total_bytes:
                progress(step, status.current_bytes / status.total_bytes)
            require_space(job.target[0].path)
            await asyncio.sleep(_LOOK_S)
    except BaseException:
        await asyncio.shield(plane.job_cancel(job.id))
        raise
    if status.error is not None:
        raise failure(job, status.error)


def failure(job: CopyJob, reason: str) -> ResourceError:
    """The error for a job that ended with `reason`, the kernel's words for an errno."""
    path = job.target[0].path
    if reason == os.strerror(errno.ENOSPC):
        return disk_full(path)
    return ResourceError(f"{title(f'%copy/{job.id}')}, into {path}, failed: {reason}", path=path)


def disk_full(path: str) -> ResourceError:
    """The error for a file system without space for the file at `path`."""
    return ResourceError(
        f"the disk is full at {Path(path).parent}", hint="free some space and try again", path=path
    )


def require_space(path: str) -> None:
    """Raise `ResourceError` if there is hardly space left beside `path`: others write there too."""
    space = os.statvfs(path)
    kept = min(_SPACE_KEPT, int(space.f_blocks * space.f_frsize * _SPACE_SHARE))
    if space.f_bavail * space.f_frsize < kept:
        raise disk_full(path)


async def _status(plane: PlaneClient, job_id: str) -> JobStatus:
    for status in await plane.query_jobs():
        if status.id == job_id:
            return status
    raise UnavailableError(f"the plane has forgotten job {job_id}", hint="it was restarted; try again")
