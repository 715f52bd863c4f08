"""Long jobs: they have steps and progress, can be watched and cancelled, and outlive who asked for them."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nagaya.daemon.events import Events
from nagaya.daemon.state import OPERATIONS_KEPT, State, cut_short
from nagaya.daemon.writer import Writer
from nagaya.errors import ConflictError, NagayaError, NotFoundError, UnavailableError
from nagaya.models.operation import OperationInfo, OperationState
from nagaya.progress import Progress

Work = Callable[[Progress], Awaitable[dict[str, Any]]]

RUNNING_LIMIT = 64  # each may hold a thread and megabytes; a client that asks for more is refused

log = logging.getLogger("nagaya.daemon")


@dataclass(slots=True, eq=False)
class _Job:
    info: OperationInfo
    task: asyncio.Task[None] | None = None
    ending: bool = False  # the work is over, its end is being recorded
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Operations:
    """The operations of this daemon, and those of the last one that are still remembered."""

    def __init__(self, writer: Writer, events: Events) -> None:
        self._writer = writer
        self._events = events
        self._jobs: dict[str, _Job] = {}

    async def remember(self) -> None:
        """Know the old ones again; those that ran when the last daemon ended have failed."""
        for info in self._writer.state.operations():
            known = info
            if info.state is OperationState.RUNNING:
                known = cut_short(info, time.time())
                await self._writer.call(State.save_operation, known)
            self._jobs[info.id] = _Job(known)

    async def start(self, kind: str, target: str, work: Work) -> OperationInfo:
        """Begin `work`, which gets a `Progress` and returns the result."""
        if sum(job.task is not None for job in self._jobs.values()) >= RUNNING_LIMIT:
            raise UnavailableError(f"{RUNNING_LIMIT} operations run already", hint="wait for one of them")
        info = OperationInfo(
            uuid.uuid4().hex[:12], kind, target, OperationState.RUNNING, "queued", None, 1, time.time()
        )
        job = _Job(info)
        self._jobs[info.id] = job
        await self._writer.call(State.save_operation, info)
        job.task = asyncio.create_task(self._run(job, work))
        self._forget_oldest()
        return info

    def all(self) -> list[OperationInfo]:
        """Oldest first."""
        return sorted((job.info for job in self._jobs.values()), key=lambda info: info.created_at)

    def get(self, operation_id: str) -> OperationInfo:
        """Raises `NotFoundError`."""
        return self._job(operation_id).info

    async def wait(self, operation_id: str, after: int, seconds: float) -> OperationInfo:
        """The operation once its revision is above `after`, or as it is after `seconds`."""
        job = self._job(operation_id)
        try:
            async with asyncio.timeout(seconds):
                while job.info.revision <= after and job.info.state is OperationState.RUNNING:
                    await job.changed.wait()
        except TimeoutError:
            pass
        return job.info

    async def cancel(self, operation_id: str) -> OperationInfo:
        """Stop it, and return when it has cleaned up. Raises `ConflictError` if it has ended."""
        job = self._job(operation_id)
        if job.task is None:
            raise ConflictError(f"operation {operation_id} has ended: {job.info.state}")
        task = job.task
        if not job.ending:
            task.cancel()
        await asyncio.wait([task])
        if job.task is task:  # cancelled before its first step: `_run` never began
            await self._end(job, {"state": OperationState.CANCELLED, "error": _cancelled(job.info).to_json()})
        return job.info

    async def close(self) -> None:
        """Cancel all that run."""
        jobs = [job for job in self._jobs.values() if job.task is not None]
        for job in jobs:
            if job.task is not None and not job.ending:
                job.task.cancel()
        await asyncio.gather(*(job.task for job in jobs if job.task is not None), return_exceptions=True)

    async def _run(self, job: _Job, work: Work) -> None:
        loop = asyncio.get_running_loop()

        def progress(step: str, fraction: float | None) -> None:
            loop.call_soon_threadsafe(self._advance, job, step, fraction)

        end: dict[str, Any]
        try:
            end = {"state": OperationState.DONE, "fraction": 1.0, "result": await work(progress)}
        except asyncio.CancelledError:
            end = {"state": OperationState.CANCELLED, "error": _cancelled(job.info).to_json()}
        except NagayaError as error:
            end = {"state": OperationState.FAILED, "error": error.to_json()}
        except Exception as error:  # a bug must not leave the operation running for ever
            log.exception("operation %s (%s) failed", job.info.id, job.info.kind)
            end = {"state": OperationState.FAILED, "error": _bug(error).to_json()}
        await self._end(job, end)

    async def _end(self, job: _Job, facts: dict[str, Any]) -> None:
        job.ending = True
        end = replace(job.info, revision=job.info.revision + 1, ended_at=time.time(), **facts)
        try:
            await self._writer.call(State.save_operation, end)
        except NagayaError as error:
            log.warning("operation %s: its end could not be recorded: %s", end.id, error)
        job.task = None
        self._set(job, end)

    def _advance(self, job: _Job, step: str, fraction: float | None) -> None:
        if job.info.state is OperationState.RUNNING and (step, fraction) != (
            job.info.step,
            job.info.fraction,
        ):
            self._set(job, replace(job.info, step=step, fraction=fraction, revision=job.info.revision + 1))

    def _set(self, job: _Job, info: OperationInfo) -> None:
        job.info = info
        job.changed.set()
        job.changed = asyncio.Event()
        self._events.publish({"event": "operation", **asdict(info)})

    def _job(self, operation_id: str) -> _Job:
        try:
            return self._jobs[operation_id]
        except KeyError:
            raise NotFoundError(
                f"there is no operation {operation_id!r}", hint="`nagaya operation list` shows them"
            ) from None

    def _forget_oldest(self) -> None:
        ended = [info.id for info in self.all() if info.state is not OperationState.RUNNING]
        for operation_id in ended[: max(0, len(self._jobs) - OPERATIONS_KEPT)]:
            del self._jobs[operation_id]


def _cancelled(info: OperationInfo) -> NagayaError:
    return ConflictError(f"{info.kind} {info.target} was cancelled at: {info.step}")


def _bug(error: Exception) -> NagayaError:
    return NagayaError(
        f"the daemon failed: {type(error).__name__}: {error}", hint="its log has the trace; please report it"
    )
