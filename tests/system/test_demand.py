"""What is asked of a disk is recorded by a real worker, and replayed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.errors import UnavailableError, UsageError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import BlkDevice, Layer, Model
from nagaya.plane.demand import Device, WorkerDemand, simulate
from nagaya.plane.launch import ensure_holder

pytestmark = pytest.mark.anyio

MIB = 2**20
# Four at once, 2 ms each: 2,000 a second for all machines together.
SIMULATED = Model(8 * MIB, "test", parallel=4, read_us=2000, write_us=2000, flush_us=2000)


@contextlib.asynccontextmanager
async def served(paths: Paths, *names: str) -> AsyncIterator[tuple[PlaneClient, list[BlkDevice]]]:
    """Disks of machines with these names, all on one simulated device."""
    layers = (Layer("", "simulated", SIMULATED),)
    disks = [
        BlkDevice(f"{name}/disk0", str(paths.run / f"{name}.sock"), os.getuid(), os.getgid(), layers)
        for name in names
    ]
    await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as client:
        for disk in disks:
            await client.device_add(disk)
        yield client, disks
        with contextlib.suppress(UnavailableError):
            await client.quit()


async def ask(vub: Path, disk: BlkDevice, *arguments: str) -> int:
    """Requests that a machine completes in a second and a half."""
    command = ("bench", "--socket", disk.socket, "--mode", "block", "--seconds", "1.5", *arguments)
    process = await asyncio.create_subprocess_exec(vub, *command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(json.loads(output)["ios"])


async def demand(client: PlaneClient, *, anew: bool) -> WorkerDemand:
    (found,) = await client.query_demand(anew)
    return found


async def test_requests_are_recorded_as_they_came_and_replay_as_they_were(house: Paths, vub: Path) -> None:
    async with served(house, "stream", "reader") as (client, (stream, reader)):
        counts = await asyncio.gather(
            ask(vub, stream, "--op", "write", "--depth", "8", "--block", "16384"),
            ask(vub, reader, "--op", "read", "--depth", "1"),
        )
        found = await demand(client, anew=True)
        patterns = {one["id"]: one for one in found.patterns}
        assert patterns["reader/disk0"]["mix"] == [
            {"kind": "read", "count": counts[1], "bytes": 4096 * counts[1]}
        ]
        (writes,) = patterns["stream/disk0"]["mix"]
        assert (writes["kind"], writes["count"], writes["bytes"]) == ("write", counts[0], 16384 * counts[0])
        assert {one["depth"] // one["count"] for one in patterns["reader/disk0"]["periods"]} == {1}
        assert max(one["depth"] // one["count"] for one in patterns["stream/disk0"]["periods"]) == 8
        assert all(cell["times_ns"][0] >= 1_900_000 for cell in found.cells), "quicker than the device"
        outcome = simulate(Device(found.cells), found.patterns)
        for leaf, count in zip(sorted(outcome.leaves, key=lambda one: one.id), reversed(counts), strict=True):
            assert 0.5 < leaf.iops * 1.5 / count < 2, leaf
        assert (await demand(client, anew=False)).patterns == ()
        with pytest.raises(UsageError, match="one argument"):
            await client._execute("query-demand", {"anew": 1})


async def test_a_worker_that_is_killed_records_anew(house: Paths, vub: Path) -> None:
    async with served(house, "reader") as (client, (reader,)):
        await ask(vub, reader, "--op", "read", "--depth", "1")
        assert (await demand(client, anew=False)).patterns
        (worker,) = await client.query_workers()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            while (await client.query_workers())[0].pid in (None, worker.pid):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        count = await ask(vub, reader, "--op", "read", "--depth", "1")
        ((pattern,),) = [(await demand(client, anew=False)).patterns]
        assert pattern["mix"][0]["count"] == count
