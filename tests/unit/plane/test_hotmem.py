"""Memory that guests plug, as a client of the plane sees it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.plane.test_service import plane

from nagaya.errors import NotFoundError, UsageError
from nagaya.plane.config import MemDevice
from nagaya.plane.hotmem import HotMemoryStatus

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio
MEM = "m1/mem0"


@pytest.fixture
def mem(directory: Path) -> MemDevice:
    return MemDevice(MEM, str(directory / "mem0.sock"), os.getuid(), os.getgid(), start=1 << 32, size=1 << 30)


async def test_a_guest_is_asked_to_plug_memory(core: FakeCore, directory: Path, mem: MemDevice) -> None:
    async with plane(core, directory) as client:
        assert await client.query_memory() == []
        await client.device_add(mem)
        config, fds = core.devices[MEM]
        assert (config["worker"], config["requested"], len(fds)) == ("balloons", 0, 1)
        await client.set_memory(MEM, 1 << 29)
        assert await client.query_memory() == [
            HotMemoryStatus(
                MEM, 1 << 32, 1 << 30, block=2 << 20, requested=1 << 29, plugged=0, connected=True
            )
        ]


async def test_what_cannot_be_asked_of_a_guest_is_said(
    core: FakeCore, directory: Path, mem: MemDevice
) -> None:
    async with plane(core, directory) as client:
        await client.device_add(mem)
        with pytest.raises(NotFoundError, match="no device m2/mem0"):
            await client.set_memory("m2/mem0", 0)
        with pytest.raises(UsageError, match="memory of m1/mem0: requested is too much"):
            await client.set_memory(MEM, 1 << 31)
        with pytest.raises(UsageError, match="requested of m1/mem0 is -1"):
            await client.set_memory(MEM, -1)
        with pytest.raises(UsageError, match="has the arguments id and requested"):
            await client._execute("set-memory", {"id": MEM, "requested": True})
