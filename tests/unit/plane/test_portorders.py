"""Ports of networks that are there: other rules, faults, a look at their connections and frames."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.unit.plane.conftest import FLOW
from tests.unit.plane.test_service import plane

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UsageError
from nagaya.plane.config import NetDevice
from nagaya.plane.ports import Flow, PortRules, SecurityRow

if TYPE_CHECKING:
    from tests.unit.plane.conftest import FakeCore

pytestmark = pytest.mark.anyio
PORT = "m1/net0"
RULES = PortRules(("10.77.0.5",), groups=("web",), security=(SecurityRow("in", "tcp", (80, 80)),))


@pytest.fixture
def port(directory: Path) -> NetDevice:
    socket = str(directory / "net.sock")
    return NetDevice(PORT, socket, os.getuid(), os.getgid(), "default", "52:54:00:00:00:01")


async def test_a_port_gets_rules_and_a_link(core: FakeCore, directory: Path, port: NetDevice) -> None:
    async with plane(core, directory) as client:
        await client.device_add(port)
        await client.set_port(PORT, RULES)
        (_, order) = core.orders[-1]
        assert (order["type"], order["link"], order["rules"]["groups"]) == ("set", True, ["web"])
        assert order["rules"]["security"][0]["ports"] == [80, 80]
        await client.set_port(PORT, RULES, link=False)
        assert core.orders[-1][1]["link"] is False
        rows = await client._execute("query-devices")
        assert isinstance(rows, list)
        assert (rows[0]["config"]["rules"]["groups"], rows[0]["link"]) == (["web"], False)
        with pytest.raises(NotFoundError, match="m2/net0 is not a machine's port"):
            await client.set_port("m2/net0", RULES)
        with pytest.raises(UsageError, match="link of set-port is 7"):
            await client._execute("set-port", {"id": PORT, "link": 7})
        with pytest.raises(UsageError, match="no argument 'colour'"):
            await client._execute("set-port", {"id": PORT, "colour": 7})


async def test_faults_are_told_and_end(core: FakeCore, directory: Path, port: NetDevice) -> None:
    async with plane(core, directory) as client:
        await client.device_add(port)
        events = client.events()
        told = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        await client.set_port_faults(PORT, {"loss": 0.5, "partition": ["m2/net0"]})
        assert core.orders[-1] == (
            PORT,
            {"type": "faults", "plan": {"loss": 0.5, "partition": ["m2/net0"]}},
        )
        event = await told
        assert event.name == "PORT_FAULTS"
        assert event.facts == {"id": PORT, "faults": {"loss": 0.5, "partition": ["m2/net0"]}}
        await events.aclose()
        await client.set_port_faults(PORT, None)
        assert core.orders[-1] == (PORT, {"type": "faults", "plan": None})
        with pytest.raises(UsageError, match="loss is too much"):
            await client.set_port_faults(PORT, {"loss": 2})
        with pytest.raises(NotFoundError):
            await client.set_port_faults("m2/net0", None)


async def test_connections_are_told(core: FakeCore, directory: Path, port: NetDevice) -> None:
    async with plane(core, directory) as client:
        await client.device_add(port)
        (flow,) = await client.query_flows(PORT, 5)
        assert flow == Flow(**FLOW)
        assert core.orders[-1] == (PORT, {"type": "flows", "limit": 5})
        with pytest.raises(UsageError, match="limit of query-flows is 0"):
            await client.query_flows(PORT, 0)


@pytest.mark.parametrize("kind", ["file", "fifo"])
async def test_a_capture_begins_with_the_header_of_pcap(
    core: FakeCore, directory: Path, port: NetDevice, kind: str
) -> None:
    path = directory / "web.pcap"
    path.write_bytes(b"what was there before") if kind == "file" else os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with plane(core, directory) as client:
            await client.device_add(port)
            await client.capture_start(PORT, str(path), snaplen=96, limit=10**6)
            assert core.orders[-1] == (PORT, {"type": "capture", "snaplen": 96, "limit": 10**6})
            header = struct.unpack("<IHHiIII", os.read(reader, 100))
            assert header == (0xA1B23C4D, 2, 4, 0, 0, 96, 1)
            with pytest.raises(ConflictError, match="captured already"):
                await client.capture_start(PORT, str(path), snaplen=96, limit=10**6)
            assert (await client.query_ports())[0].captured
            assert await client.capture_stop(PORT) == (7, 1)
            with pytest.raises(NotFoundError, match="not captured"):
                await client.capture_stop(PORT)
    finally:
        os.close(reader)


async def test_a_capture_needs_somewhere_to_go(core: FakeCore, directory: Path, port: NetDevice) -> None:
    os.mkfifo(directory / "fifo")
    (directory / "link").symlink_to(directory / "fifo")
    async with plane(core, directory) as client:
        await client.device_add(port)
        for name in ("fifo", "link", "missing", "."):
            with pytest.raises(ResourceError, match="cannot be written"):
                await client.capture_start(PORT, str(directory / name), snaplen=96, limit=10**6)
    assert core.orders == []
