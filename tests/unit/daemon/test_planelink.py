"""The daemon's connection to a plane that outlived the last daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.plane.conftest import FakeCore
from tests.unit.plane.test_service import plane

from nagaya.daemon.planelink import PlaneLink
from nagaya.paths import Paths
from nagaya.plane.config import CopyJob, Layer
from nagaya.progress import silent

pytestmark = pytest.mark.anyio


async def test_work_of_a_daemon_that_died_is_given_up_and_ones_own_is_not(directory: Path) -> None:
    core, paths = FakeCore(), Paths(directory, directory / "s", directory / "c")
    for name in ("from", "old", "new"):
        (directory / name).write_bytes(bytes(2**20))

    def job(target: str) -> CopyJob:
        layers, into = ((Layer(str(directory / name), "raw"),) for name in ("from", target))
        return CopyJob(target, layers, into)

    async with plane(core, directory) as client:
        await client.job_start(job("old"))
        link = PlaneLink(paths)
        await link.prepare()
        assert [(one.id, one.error) for one in await client.query_jobs()] == [("old", "cancelled")]
        mine = asyncio.create_task(link.work(job("new"), "copy", silent))
        while "%copy/new" not in core.devices:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await link.device_ids()
        core.happen("JOB_ENDED", id="%copy/new", errno=0)
        await mine
        await link.close()
