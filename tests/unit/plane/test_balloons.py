"""Balloons, as a client of the plane sees them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.plane.test_service import plane

from nagaya.errors import NotFoundError, UsageError
from nagaya.plane.balloons import BalloonStats
from nagaya.plane.config import BalloonDevice

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio
BALLOON = "m1/balloon0"


@pytest.fixture
def balloon(directory: Path) -> BalloonDevice:
    return BalloonDevice(BALLOON, str(directory / "balloon0.sock"), os.getuid(), os.getgid())


async def test_a_balloon_gets_a_size_and_tells(
    core: FakeCore, directory: Path, balloon: BalloonDevice
) -> None:
    async with plane(core, directory) as client:
        assert await client.query_balloons() == []
        await client.device_add(balloon)
        config, fds = core.devices[BALLOON]
        assert (config["worker"], config["stats_ms"], len(fds)) == ("balloons", 5000, 1)
        await client.set_balloon(BALLOON, 1 << 30)
        (row,) = await client.query_balloons()
        assert (row.id, row.size, row.actual, row.driver) == (BALLOON, 1 << 30, 4096, True)
        assert (row.stats, row.stats_at) == (BalloonStats(free=7), 12)
        await client.set_balloon(BALLOON, stats_ms=0)
        (row,) = await client.query_balloons()
        assert (row.size, row.stats_ms) == (1 << 30, 0)
        assert [device.device for device in await client.query_devices()] == [balloon]


async def test_what_cannot_be_asked_of_a_balloon_is_said(
    core: FakeCore, directory: Path, balloon: BalloonDevice
) -> None:
    async with plane(core, directory) as client:
        await client.device_add(balloon)
        with pytest.raises(NotFoundError, match="no balloon m2/balloon0"):
            await client.set_balloon("m2/balloon0", 0)
        with pytest.raises(UsageError, match=r"size of set-balloon is -1"):
            await client.set_balloon(BALLOON, -1)
        with pytest.raises(UsageError, match="m1/balloon0: size is too much"):
            await client.set_balloon(BALLOON, 2**50)
        with pytest.raises(UsageError, match="has the argument id, and one or more others"):
            await client.set_balloon(BALLOON)
        with pytest.raises(UsageError, match="no argument 'colour'"):
            await client._execute("set-balloon", {"id": BALLOON, "colour": 7})
        with pytest.raises(UsageError, match="takes no arguments, not id"):
            await client._execute("query-balloons", {"id": BALLOON})
