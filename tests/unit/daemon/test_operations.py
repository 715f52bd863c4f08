"""Long jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nagaya.daemon.events import BACKLOG, Events
from nagaya.daemon.operations import RUNNING_LIMIT, Operations
from nagaya.daemon.state import State
from nagaya.daemon.writer import Writer
from nagaya.errors import BuildError, ConflictError, NotFoundError, UnavailableError
from nagaya.models.operation import OperationState
from nagaya.progress import Progress


def play(directory: Path, scene: Any) -> None:
    async def life() -> None:
        writer = Writer(State(directory / "state.sqlite"))
        operations = Operations(writer, Events())
        try:
            await operations.remember()
            await scene(operations)
            await operations.close()
        finally:
            writer.close()

    asyncio.run(life())


async def ended(operations: Operations, operation_id: str) -> Any:
    info = operations.get(operation_id)
    while info.state is OperationState.RUNNING:
        info = await operations.wait(operation_id, info.revision, 5)
    return info


def test_progress_is_seen_and_the_result_kept_over_daemons(tmp_path: Path) -> None:
    identity = []

    async def work(progress: Progress) -> dict[str, Any]:
        progress("first", 0.25)
        await asyncio.sleep(0)
        await asyncio.to_thread(progress, "second", 0.5)
        await asyncio.sleep(0.01)
        return {"made": "it"}

    async def scene(operations: Operations) -> None:
        info = await operations.start("image build", "web", work)
        identity.append(info.id)
        seen = []
        while info.state is OperationState.RUNNING:
            info = await operations.wait(info.id, info.revision, 5)
            seen.append((info.step, info.fraction))
        assert ("second", 0.5) in seen
        assert (info.state, info.result, info.fraction) == ("done", {"made": "it"}, 1.0)

    async def next_scene(operations: Operations) -> None:
        info = operations.get(identity[0])
        assert (info.state, info.result) == ("done", {"made": "it"})

    play(tmp_path, scene)
    play(tmp_path, next_scene)


def test_a_failure_and_a_bug_are_kept_as_errors(tmp_path: Path) -> None:
    async def fails(_progress: Progress) -> dict[str, Any]:
        raise BuildError("mke2fs: no space", step="mke2fs")

    async def breaks(_progress: Progress) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    async def scene(operations: Operations) -> None:
        failed = await ended(operations, (await operations.start("image build", "web", fails)).id)
        assert (failed.state, failed.error["code"]) == ("failed", "build")
        broken = await ended(operations, (await operations.start("image build", "web", breaks)).id)
        assert (broken.state, broken.error["code"]) == ("failed", "internal")

    play(tmp_path, scene)


def test_cancel_waits_until_the_work_has_cleaned_up(tmp_path: Path) -> None:
    cleaned = []

    async def work(progress: Progress) -> dict[str, Any]:
        progress("compile", 0.3)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            cleaned.append(True)
        return {}

    async def scene(operations: Operations) -> None:
        info = await operations.start("kernel build", "uml", work)
        await operations.wait(info.id, info.revision, 5)
        end = await operations.cancel(info.id)
        assert cleaned == [True]
        assert end.state == "cancelled"
        assert end.error is not None
        assert end.error["message"] == "kernel build uml was cancelled at: compile"
        with pytest.raises(ConflictError, match="has ended: cancelled"):
            await operations.cancel(info.id)

    play(tmp_path, scene)


def test_an_operation_that_is_cancelled_before_it_begins_ends(tmp_path: Path) -> None:
    begun = []

    async def work(_progress: Progress) -> dict[str, Any]:
        begun.append(True)
        return {}

    async def scene(operations: Operations) -> None:
        info = await operations.start("kernel build", "uml", work)
        assert (await operations.cancel(info.id)).state == "cancelled"
        assert not begun
        with pytest.raises(ConflictError, match="has ended: cancelled"):
            await operations.cancel(info.id)

    play(tmp_path, scene)


def test_what_ran_when_the_daemon_ended_has_failed(tmp_path: Path) -> None:
    from dataclasses import replace

    identity = []

    async def scene(operations: Operations) -> None:
        async def work(_progress: Progress) -> dict[str, Any]:
            return {}

        info = await operations.start("up", "web", work)
        identity.append(await ended(operations, info.id))

    play(tmp_path, scene)
    with State(tmp_path / "state.sqlite") as db:
        db.save_operation(replace(identity[0], state=OperationState.RUNNING, ended_at=None))

    async def next_scene(operations: Operations) -> None:
        info = operations.get(identity[0].id)
        assert info.state == "failed"
        assert info.error is not None
        assert "the daemon ended during this operation" in info.error["message"]

    play(tmp_path, next_scene)


def test_unknown_ones_and_too_many_are_refused(tmp_path: Path) -> None:
    async def work(_progress: Progress) -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    async def scene(operations: Operations) -> None:
        with pytest.raises(NotFoundError):
            operations.get("nothing")
        for _ in range(RUNNING_LIMIT):
            await operations.start("up", "web", work)
        with pytest.raises(UnavailableError, match=f"{RUNNING_LIMIT} operations run already"):
            await operations.start("up", "web", work)

    play(tmp_path, scene)


def test_a_listener_who_does_not_read_loses_events_and_is_told() -> None:
    async def scene() -> None:
        events = Events()
        with events.subscribe() as news:
            for number in range(BACKLOG + 5):
                events.publish({"number": number})
            stream = news.__aiter__()
            for number in range(BACKLOG):
                assert await anext(stream) == {"number": number}
            assert await anext(stream) == {"event": "lost", "count": 5}
            await stream.aclose()

    asyncio.run(scene())
