"""Host work on disks by a worker of its own, for daemons whose plane is a fake: the files are real."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import ExitStack

from nagaya import _core
from nagaya.errors import ResourceError
from nagaya.plane import worker
from nagaya.plane.config import CopyJob
from nagaya.plane.copying import failure
from nagaya.plane.jobs import open_job
from nagaya.progress import Progress


async def work(job: CopyJob, step: str, progress: Progress) -> None:
    """Do `job`. Raises as `nagaya.plane.copying.run` does."""
    progress(step, 0.0)
    with ExitStack() as stack:
        plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
        stack.callback(plane.close)
        config, fds = open_job(job, lambda _key: [], stack)
        try:
            await asyncio.to_thread(plane.job_start, json.dumps(config), fds)
        except OSError as error:
            raise ResourceError(f"job {job.id} cannot start: {error.strerror}") from error
        while (result := _result(plane)) is None:  # noqa: ASYNC110  # another process ends it
            await asyncio.sleep(0.005)
    if result:
        raise failure(job, os.strerror(result))


def _result(plane: _core.Plane) -> int | None:
    """The errno of the job, once it has ended."""
    for text in plane.take_events():
        event = json.loads(text)
        if event["event"] == "JOB_ENDED":
            return int(event["data"]["errno"])
    return None
