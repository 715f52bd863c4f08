"""Who goes first, through a real holder: shares, waits that it remembers, host work with real images."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.errors import ConflictError, ResourceError, UnavailableError, UsageError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import BlkDevice, CopyJob, Layer, Model
from nagaya.plane.launch import ensure_holder
from nagaya.plane.shares import NodeStatus, ShareNode

pytestmark = pytest.mark.anyio

MIB = 2**20
# Four reads of 1 ms at once: 4,000 a second for all machines together.
SIMULATED = Model(8 * MIB, "test", parallel=4, read_us=1000, write_us=1000, flush_us=1000)


@contextlib.asynccontextmanager
async def running(paths: Paths) -> AsyncIterator[PlaneClient]:
    await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as client:
        yield client
        with contextlib.suppress(UnavailableError):
            await client.quit()


def disk(paths: Paths, device_id: str, layer: Layer, *shares: ShareNode) -> BlkDevice:
    place = str(paths.run / f"{device_id.replace('/', '-')}.sock")
    return BlkDevice(device_id, place, os.getuid(), os.getgid(), (layer,), shares=shares)


async def node(client: PlaneClient, node_id: str) -> NodeStatus:
    (arbiter,) = await client.query_arbiter()
    return next(one for one in arbiter.nodes if one.id == node_id)


async def bench(vub: Path, device: BlkDevice, seconds: float) -> int:
    """Reads that a machine completes in `seconds`, 32 at a time."""
    arguments = ("bench", "--socket", device.socket, "--op", "read", "--mode", "block")
    process = await asyncio.create_subprocess_exec(
        vub, *arguments, "--depth", "32", "--seconds", str(seconds), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return int(json.loads(output)["ios"])


async def test_machines_share_a_disk_as_they_are_told_and_the_holder_knows_who_waited(
    house: Paths, vub: Path
) -> None:
    async with running(house) as client:
        layer = Layer("", "simulated", SIMULATED)
        tenant = (ShareNode("@acme", weight=300), ShareNode("db", "@acme"))
        db, batch = disk(house, "db/disk0", layer, *tenant), disk(house, "batch/disk0", layer)
        await client.device_add(db)
        await client.device_add(batch)
        assert [(one.id, one.parent, one.weight) for one in (await client.query_arbiter())[0].nodes] == [
            ("@acme", None, 300),
            ("db", "@acme", 100),
            ("db/disk0", "db", 100),
            ("batch", None, 100),
            ("batch/disk0", "batch", 100),
        ]
        first, second = await asyncio.gather(bench(vub, db, 1.5), bench(vub, batch, 1.5))
        assert 2.4 < first / second < 3.6
        await client.set_shares([ShareNode("batch", weight=400, limit_iops=2**31)], remove=["@acme", "db"])
        assert ((await node(client, "db")).parent, (await node(client, "batch")).weight) == (None, 400)
        second, first = await asyncio.gather(bench(vub, batch, 1.5), bench(vub, db, 1.5))
        assert 3.2 < second / first < 4.8
        async with asyncio.timeout(5):  # workers tell once a second
            while not (rows := [row for row in await client.query_waits("db", 60) if row.whom == "batch"]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (rows[0].cause, rows[0].wait_us > 0, rows[0].requests > 0) == ("machine", True, True)
        with pytest.raises(UsageError, match="below itself"):
            await client.set_shares([ShareNode("db", "batch"), ShareNode("batch", "db")])


async def test_host_work_copies_a_real_overlay(house: Paths) -> None:
    base, top, target = (house.run / name for name in ("base.raw", "top.qcow2", "target.raw"))
    base.write_bytes(os.urandom(MIB) + bytes(6 * MIB) + os.urandom(MIB))
    _core.qcow2_create(str(top), 8 * MIB, str(base), "raw")
    target.touch()
    layers = (Layer(str(top), "qcow2"), Layer(str(base), "raw"))
    to = (Layer(str(target), "raw"),)
    async with running(house) as client:
        machine = disk(house, "m/disk0", Layer(str(base), "raw"))
        await client.device_add(machine)
        with pytest.raises(ConflictError, match="in use by device m/disk0"):
            await client.job_start(CopyJob("export", layers, to))
        await client.device_del(machine.id)
        with pytest.raises(ResourceError, match="cannot start"):
            await client.job_start(CopyJob("wrong", (Layer(str(base), "qcow2"),), to))
        # Slow enough to be looked at.
        shares = (ShareNode("%copy", limit=4 * MIB),)
        await client.job_start(CopyJob("export", layers, to, shares=shares))
        (job,) = await client.query_jobs()
        assert (job.id, job.status, job.error) == ("export", "running", None)
        assert (await node(client, "%copy/export")).parent == "%copy"
        await client.set_shares([], remove=["%copy"])
        async with asyncio.timeout(20):
            while (job := (await client.query_jobs())[0]).status != "concluded":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (job.current_bytes, job.total_bytes, job.error) == (8 * MIB, 8 * MIB, None)
        assert target.read_bytes() == base.read_bytes()
        assert target.stat().st_blocks * 512 <= 3 * MIB
        assert await client.query_devices() == []
        assert await client.query_workers() == []
