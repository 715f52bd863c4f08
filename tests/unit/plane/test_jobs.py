"""Host work: its images are open and locked until it has ended, one way or another."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.plane.test_service import plane

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UsageError
from nagaya.plane.client import JobStatus, PlaneClient
from nagaya.plane.config import BlkDevice, CopyJob, Layer
from nagaya.plane.shares import ShareNode
from nagaya.plane.wire import job_from_json, job_to_json

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio


@pytest.fixture
def job(directory: Path) -> CopyJob:
    for name in ("from", "base", "to"):
        (directory / name).write_bytes(bytes(2**20))
    layers = (Layer(str(directory / "from"), "qcow2"), Layer(str(directory / "base"), "raw"))
    return CopyJob(
        "one", layers, (Layer(str(directory / "to"), "raw"),), shares=(ShareNode("%copy", weight=5),)
    )


async def status(client: PlaneClient) -> list[JobStatus]:
    return await client.query_jobs()


async def test_a_job_runs_until_the_core_says_that_it_has_ended(
    core: FakeCore, directory: Path, job: CopyJob, make_disk: Callable[..., BlkDevice]
) -> None:
    async with plane(core, directory) as client:
        events = client.events()
        await client.job_start(job)
        config, fds = core.devices["%copy/one"]
        assert (config["driver"], config["shares"][0]["weight"], len(fds)) == ("copy", 5, 3)
        assert await status(client) == [JobStatus("one", "copy", "running", 4096, 8192, None)]
        with pytest.raises(ConflictError, match="already"):
            await client.job_start(job)
        with pytest.raises(ConflictError, match="in use"):
            await client.device_add(make_disk(images=["to"]))
        core.happen("JOB_ENDED", id="%copy/one", errno=0)
        async for event in events:
            if event.facts.get("status") == "concluded":
                break
        assert event.facts == {"id": "one", "status": "concluded", "error": None}
        await events.aclose()
        assert await status(client) == [JobStatus("one", "copy", "concluded", 4096, 8192, None)]
        assert core.devices == {}
        await client.device_add(make_disk(images=["to"]))
        await client.job_cancel("one")
        with pytest.raises(NotFoundError):
            await client.job_cancel("two")


async def test_a_job_that_fails_or_is_cancelled_says_so(
    core: FakeCore, directory: Path, job: CopyJob
) -> None:
    async with plane(core, directory) as client:
        await client.job_start(job)
        await client.job_cancel("one")
        assert [(one.status, one.error) for one in await status(client)] == [("concluded", "cancelled")]
        await client.job_start(job)
        core.happen("JOB_ENDED", id="%copy/one", errno=errno.ENOSPC)
        while (await status(client))[0].status != "concluded":
            pass
        assert (await status(client))[0].error == "No space left on device"
        await client.job_start(job)  # left to the holder's end


async def test_a_job_that_ends_at_once_is_concluded(core: FakeCore, directory: Path, job: CopyJob) -> None:
    core.short_jobs = True
    async with plane(core, directory) as client:
        await client.job_start(job)
        async with asyncio.timeout(5):
            while (await status(client))[0].status != "concluded":
                pass
        assert core.devices == {}


async def test_a_job_that_the_core_refuses_leaves_nothing(
    core: FakeCore, directory: Path, job: CopyJob
) -> None:
    async with plane(core, directory) as client:
        core.fails = OSError(errno.EINVAL, "the image is not qcow2")
        with pytest.raises(ResourceError, match="not qcow2"):
            await client.job_start(job)
        core.fails = None
        assert await status(client) == []
        await client.job_start(job)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "move"}, "kind 'move'"),
        ({"id": "a b"}, "does not match"),
        ({"target": [{"path": "to", "format": "raw"}]}, "not an absolute path"),
        ({"target": "/to"}, "list of 1 to"),
        ({"id": "a/b"}, "does not match"),
        ({"layers": []}, "list of 1 to"),
        ({"colour": 7}, "'colour' is unknown"),
    ],
)
async def test_what_is_wrong_is_named(job: CopyJob, change: dict[str, Any], words: str) -> None:
    layer = {"path": "/i", "format": "raw"}
    arguments = {**job_to_json(job), "layers": [layer], "target": [layer]}
    assert job_from_json(arguments).target == (Layer("/i", "raw"),)
    with pytest.raises(UsageError) as caught:
        job_from_json(arguments | change)
    assert words in caught.value.message
