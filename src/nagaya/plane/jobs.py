"""The plane's QMP commands for host work on disks: job-start, query-jobs, job-cancel (docs/plane.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UsageError
from nagaya.plane.config import BlkDevice, CopyJob, Layer
from nagaya.plane.shares import share_to_json
from nagaya.plane.storage import ImageKey, OpenImages
from nagaya.plane.wire import job_from_json, layer_to_core
from nagaya.qmp import Command

_CONCLUDED = 32  # jobs that have ended and can still be asked about

log = logging.getLogger(__name__)


class Core(Protocol):
    """What is needed of `nagaya._core.Plane`."""

    def job_start(self, config: str, fds: Sequence[int]) -> None: ...
    def job_end(self, id: str) -> None: ...  # noqa: A002
    def query(self) -> str: ...


@dataclass(slots=True)
class _Job:
    """A job: under way while it has images open."""

    job: CopyJob
    stack: contextlib.AsyncExitStack
    progress: tuple[int, int] = (0, 0)
    status: str = "running"
    error: str | None = None
    ended: int | None = None  # the errno, if it ended before anybody knew that it had begun


class Jobs:
    """Owns the jobs.

    `in_core` runs a call of the core beside the event loop, `emit` sends an event to the clients, `users_of`
    names the devices that have an image open, `finish` runs a command to its end whoever hangs up.
    """

    def __init__(
        self,
        core: Core,
        in_core: Callable[..., Awaitable[Any]],
        emit: Callable[[str, Mapping[str, object]], None],
        users_of: Callable[[ImageKey], list[str]],
        finish: Callable[[Awaitable[object]], Awaitable[object]],
    ) -> None:
        self._core = core
        self._in_core = in_core
        self._emit = emit
        self._users_of = users_of
        self._jobs: dict[str, _Job] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self.commands: dict[str, Command] = {
            "job-cancel": lambda arguments: finish(self._cancel(arguments)),
            "job-start": lambda arguments: finish(self._start(arguments)),
            "query-jobs": self._query,
        }

    def hear(self, event: str, facts: Mapping[str, Any]) -> bool:
        """Whether `event` of the core is one for us, not for the clients."""
        if event != "JOB_ENDED":
            return False
        job = self._jobs.get(_name(facts["id"]))
        if job is not None and job.status == "running":
            self._end(job, facts["errno"])
        elif job is not None and job.status == "created":
            job.ended = facts["errno"]
        return True

    def _end(self, job: _Job, errno: int) -> None:
        ending = asyncio.ensure_future(self._conclude(job, os.strerror(errno) if errno else None))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for job in list(self._jobs.values()):
            await self._conclude(job, "the plane has stopped")
        if self._endings:
            await asyncio.wait(self._endings)

    async def _start(self, arguments: Mapping[str, object]) -> object:
        job = job_from_json(arguments)
        known = self._jobs.get(job.id)
        if known is not None and known.status != "concluded":
            raise ConflictError(f"there is a job {job.id} already", hint="see query-jobs", id=job.id)
        async with contextlib.AsyncExitStack() as stack:
            self._jobs[job.id] = started = _Job(job, stack, status="created")
            try:
                await self._begin(job, stack)
            except BaseException:
                del self._jobs[job.id]
                raise
            started.stack = stack.pop_all()
        self._set_status(started, "running")
        if started.ended is not None:
            self._end(started, started.ended)
        for job_id in [name for name, one in self._jobs.items() if one.status == "concluded"][:-_CONCLUDED]:
            del self._jobs[job_id]
        return {}

    async def _begin(self, job: CopyJob, stack: contextlib.AsyncExitStack) -> None:
        config, fds = await self._in_core(open_job, job, self._users_of, stack)
        try:
            await self._in_core(self._core.job_start, json.dumps(config), fds)
        except ValueError as error:
            raise UsageError(f"the core refuses job {job.id}: {error}") from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise ResourceError(f"job {job.id} cannot start: {reason}", errno=error.errno) from error

    async def _cancel(self, arguments: Mapping[str, object]) -> object:
        job_id = arguments.get("id")
        if not isinstance(job_id, str) or len(arguments) != 1:
            raise UsageError("job-cancel has one argument, id")
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFoundError(f"there is no job {job_id}", hint="see query-jobs", id=job_id)
        await self._conclude(job, "cancelled")
        return {}

    async def _query(self, arguments: Mapping[str, object]) -> object:
        if arguments:
            raise UsageError(f"query-jobs takes no arguments, not {', '.join(arguments)}")
        await self._look()
        return [
            {
                "id": job.job.id,
                "type": job.job.kind,
                "status": job.status,
                "current-progress": job.progress[0],
                "total-progress": job.progress[1],
                "error": job.error,
            }
            for job in self._jobs.values()
        ]

    async def _look(self) -> None:
        """Take the progress of the running jobs from the core."""
        rows = {row["id"]: row for row in json.loads(await self._in_core(self._core.query))["devices"]}
        for job in self._jobs.values():
            row = rows.get(_node(job.job.id))
            if row is not None and job.status != "concluded":
                job.progress = (row["copied"], row["to_copy"])

    async def _conclude(self, job: _Job, error: str | None) -> None:
        if job.status != "running":
            return
        job.status = "aborting" if error else "pending"
        await self._look()
        try:
            await self._in_core(self._core.job_end, _node(job.job.id))
        except (KeyError, OSError) as failure:
            log.error("job not ended", extra={"job": job.job.id, "error": str(failure)})
        await job.stack.aclose()
        job.error = error
        self._set_status(job, "concluded")

    def _set_status(self, job: _Job, status: str) -> None:
        job.status = status
        log.info("job", extra={"job": job.job.id, "status": status, "error": job.error})
        self._emit("JOB_STATUS_CHANGE", {"id": job.job.id, "status": status, "error": job.error})


def open_job(
    job: CopyJob,
    users_of: Callable[[ImageKey], list[str]],
    stack: contextlib.ExitStack | contextlib.AsyncExitStack,
) -> tuple[dict[str, object], list[int]]:
    """What `Core.job_start` is told of `job`, and its images, open and locked as long as `stack`.

    Raises a `NagayaError` that names the file that cannot be opened, or is in use.
    """

    def device(layers: tuple[Layer, ...], *, read_only: bool) -> BlkDevice:
        return BlkDevice(job.id, "", 0, 0, layers, read_only=read_only, direct=job.direct)

    disks = [device(job.layers, read_only=True), device(job.target, read_only=False)]
    disks += [device(job.unlike, read_only=True)] if job.unlike else []
    opened = [stack.enter_context(OpenImages(disk, users_of, unchanging=job.keep)) for disk in disks]
    config: dict[str, object] = {
        "driver": "copy",
        "id": _node(job.id),
        "worker": opened[1].worker,
        "direct": all(images.direct for images in opened),
        "layers": [layer_to_core(layer) for layer in job.layers],
        "target": [layer_to_core(layer) for layer in job.target],
        "unlike": [layer_to_core(layer) for layer in job.unlike],
        "top_only": job.top_only,
        "keep": job.keep,
        "shares": [share_to_json(node) for node in job.shares],
    }
    return config, [fd for images in opened for fd in images.fds]


def _node(job_id: str) -> str:
    """Where the job's requests are in the arbiter's tree."""
    return f"%copy/{job_id}"


def _name(node: str) -> str:
    return node.partition("/")[2]
