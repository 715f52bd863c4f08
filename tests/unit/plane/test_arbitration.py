"""Knobs reach the core checked; what workers say of waiting comes back summed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.plane.test_service import plane

from nagaya.errors import UsageError
from nagaya.plane.config import BlkDevice
from nagaya.plane.shares import ShareNode, WaitRow

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio


async def test_shares_are_checked_and_go_to_the_core(core: FakeCore, directory: Path) -> None:
    async with plane(core, directory) as client:
        await client.set_shares([ShareNode("m1", "@acme", weight=300)], remove=["m2"])
        first, second = core.shares
        assert (first["id"], first["parent"], first["weight"]) == ("m1", "@acme", 300)
        assert second == {"id": "m2", "remove": True}
        with pytest.raises(UsageError, match="weight of share m1 is 0"):
            await client.set_shares([ShareNode("m1", weight=0)])
        core.fails = ValueError("m1 would be below itself")
        with pytest.raises(UsageError, match="below itself"):
            await client.set_shares([ShareNode("m1", "m1")])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"nodes": 7}, {"nodes": [7]}, {"nodes": [{"id": "m", "remove": False}]}, {"nodes": [], "more": 1}],
)
async def test_other_arguments_are_refused(
    core: FakeCore, directory: Path, arguments: dict[str, object]
) -> None:
    async with plane(core, directory) as client:
        with pytest.raises(UsageError):
            await client._execute("set-shares", arguments)
    assert core.shares == []


async def test_a_disk_brings_its_shares(
    core: FakeCore, directory: Path, make_disk: Callable[..., BlkDevice]
) -> None:
    async with plane(core, directory) as client:
        disk = make_disk(shares=(ShareNode("m1", weight=400), ShareNode("m1/disk0", limit_iops=50)))
        await client.device_add(disk)
        config, _ = core.devices[disk.id]
        assert [(node["id"], node["weight"], node["limit_iops"]) for node in config["shares"]] == [
            ("m1", 400, None),
            ("m1/disk0", 100, 50),
        ]
        (status,) = await client.query_devices()
        assert status.device == disk


async def test_waits_of_the_workers_are_summed_and_no_event(core: FakeCore, directory: Path) -> None:
    rows = [{"waiter": "m1", "cause": "machine", "whom": "m2", "wait_us": 5, "requests": 2}]
    async with plane(core, directory) as client:
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for _ in range(3):
            core.happen("ARBITER_WAITS", worker="disk-8:0", rows=rows)
        core.happen("ARBITER_OBJECTIVE", id="m1", met=False)
        assert (await first).name == "ARBITER_OBJECTIVE"
        await events.aclose()
        assert await client.query_waits("m1", 60) == [WaitRow("m1", "machine", "m2", 15, 6)]
        assert await client.query_waits("m2", 60) == []
        assert len(await client.query_waits(None, 3600)) == 1
        with pytest.raises(UsageError, match="since is 0"):
            await client.query_waits(None, 0)


async def test_networks_have_a_tree_and_waits_of_their_own(core: FakeCore, directory: Path) -> None:
    rows = [{"waiter": "m1", "cause": "limit", "whom": "m1", "wait_us": 5, "requests": 2}]
    async with plane(core, directory) as client:
        await client.set_shares([ShareNode("m1", limit=7)], ["m2"], resource="network")
        assert [(node["id"], node.get("limit")) for node in core.network_shares] == [("m1", 7), ("m2", None)]
        assert core.shares == []
        core.happen("ARBITER_WAITS", worker="net-default", rows=rows)
        core.happen("ARBITER_WAITS", worker="disk-8:0", rows=rows)
        found: set[str] = set()
        async with asyncio.timeout(5):
            while found != {"disk", "network"}:
                found = {row.resource for row in await client.query_waits("m1", 60)}
