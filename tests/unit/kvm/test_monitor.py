"""The monitor speaks QMP as QEMU does: QEMU's own client and its shell work on it unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from nagaya.errors import NotFoundError
from nagaya.kvm.config import DeviceConfig
from nagaya.kvm.monitor import Monitor, VcpuInfo
from nagaya.plane.sockets import Listener
from nagaya.qmp import QmpServer

pytestmark = pytest.mark.anyio

CHARDEV = {
    "id": "c1",
    "backend": {
        "type": "socket",
        "data": {"addr": {"type": "unix", "data": {"path": "/jail/disk1.sock"}}, "server": False},
    },
}


class Toy:
    """A machine without a guest."""

    name = "web"
    uuid = "7f0a-1"

    def __init__(self) -> None:
        self.status = "running"
        self.done: list[str] = []
        self.devices: list[DeviceConfig] = []

    def pause(self) -> bool:
        was, self.status = self.status, "paused"
        return was == "running"

    def resume(self) -> bool:
        was, self.status = self.status, "running"
        return was == "paused"

    def power_down(self) -> None:
        self.done.append("power_down")

    def reset(self) -> None:
        self.done.append("reset")

    def quit(self) -> None:
        self.done.append("quit")

    def vcpus(self) -> Sequence[VcpuInfo]:
        return (VcpuInfo(0, 100), VcpuInfo(1, 101))

    def pci(self) -> list[dict[str, object]]:
        return [{"bus": 0, "devices": []}]

    def plug(self, device: DeviceConfig) -> None:
        self.devices.append(device)

    def unplug(self, device_id: str) -> None:
        for device in self.devices:
            if device.id == device_id:
                self.devices.remove(device)
                return
        raise NotFoundError(f"device {device_id!r} not found")


@contextlib.asynccontextmanager
async def monitored(directory: Path) -> AsyncIterator[tuple[Toy, QmpServer, str]]:
    toy, server = Toy(), QmpServer("1.2.3")
    Monitor(toy, server)
    path = str(directory / "qmp.sock")
    with Listener(path) as listener:
        task = asyncio.create_task(server.serve(listener.socket))
        yield toy, server, path
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def client_of(path: str) -> AsyncIterator[QMPClient]:
    client = QMPClient("test")
    await client.connect(path)
    try:
        yield client
    finally:
        await client.disconnect()


async def _refused(client: QMPClient, command: str, **arguments: Any) -> str:
    with pytest.raises(ExecuteError) as refused:
        await client.execute(command, arguments)
    return str(refused.value)


async def test_queries_have_qemus_shapes(directory: Path) -> None:
    async with monitored(directory) as (_, _, path), client_of(path) as client:
        running = {"status": "running", "running": True, "singlestep": False}
        assert await client.execute("query-status") == running
        assert await client.execute("query-name") == {"name": "web"}
        assert await client.execute("query-uuid") == {"UUID": "7f0a-1"}
        assert await client.execute("query-pci") == [{"bus": 0, "devices": []}]
        version: Any = await client.execute("query-version")
        assert set(version["qemu"]) == {"major", "minor", "micro"}
        cpus: Any = await client.execute("query-cpus-fast")
        assert [(cpu["cpu-index"], cpu["thread-id"]) for cpu in cpus] == [(0, 100), (1, 101)]
        commands: Any = await client.execute("query-commands")
        assert {"name": "qmp_capabilities"} in commands
        for name in ("stop", "cont", "quit", "system_powerdown", "system_reset", "device_add", "device_del"):
            assert {"name": name} in commands


async def test_stop_and_cont_tell_of_a_change_only(directory: Path) -> None:
    async with monitored(directory) as (toy, _, path), client_of(path) as client:
        for command in ("stop", "stop", "cont", "cont", "stop"):
            assert await client.execute(command) == {}
        heard = [(await asyncio.wait_for(client.events.get(), 60))["event"] for _ in range(3)]
        assert heard == ["STOP", "RESUME", "STOP"]
        assert toy.status == "paused"


async def test_the_buttons(directory: Path) -> None:
    async with monitored(directory) as (toy, _, path), client_of(path) as client:
        for command in ("system_powerdown", "system_reset", "quit"):
            assert await client.execute(command) == {}
        assert toy.done == ["power_down", "reset", "quit"]


async def test_a_disk_is_plugged_and_unplugged_as_with_qemu(directory: Path) -> None:
    async with monitored(directory) as (toy, _, path), client_of(path) as client:
        await client.execute("chardev-add", CHARDEV)
        disk = {"driver": "vhost-user-blk-pci", "id": "disk1", "chardev": "c1", "num-queues": 2}
        await client.execute("device_add", disk)
        assert toy.devices == [DeviceConfig("disk1", "blk", "/jail/disk1.sock", 2, 256)]
        await client.execute("device_del", {"id": "disk1"})
        assert toy.devices == []
        await client.execute("chardev-remove", {"id": "c1"})
        assert await client.execute("query-chardev") == []
        with pytest.raises(ExecuteError) as refused:
            await client.execute("device_del", {"id": "disk1"})
        assert refused.value.error_class == "DeviceNotFound"


async def test_a_nic_is_plugged_as_with_qemu(directory: Path) -> None:
    async with monitored(directory) as (toy, _, path), client_of(path) as client:
        await client.execute("chardev-add", CHARDEV)
        await client.execute("netdev_add", {"type": "vhost-user", "id": "n1", "chardev": "c1", "queues": 2})
        await client.execute("device_add", {"driver": "virtio-net-pci", "id": "nic1", "netdev": "n1"})
        assert toy.devices == [DeviceConfig("nic1", "net", "/jail/disk1.sock", 2, 256)]


async def test_wrong_arguments_are_refused_by_name(directory: Path) -> None:
    async with monitored(directory) as (toy, _, path), client_of(path) as client:
        await client.execute("chardev-add", CHARDEV)
        disk = {"driver": "vhost-user-blk-pci", "id": "disk1", "chardev": "c1"}
        assert "'x'" in await _refused(client, "query-status", x=1)
        assert "exists" in await _refused(client, "chardev-add", **CHARDEV)
        assert "ide-hd" in await _refused(client, "device_add", **disk | {"driver": "ide-hd"})
        assert "'c9'" in await _refused(client, "device_add", **disk | {"chardev": "c9"})
        assert "'bootindex'" in await _refused(client, "device_add", **disk, bootindex=1)
        assert "outside 1 to 64" in await _refused(client, "device_add", **disk | {"num-queues": 65})
        assert "not of type int" in await _refused(client, "device_add", **disk | {"num-queues": True})
        assert "power of two" in await _refused(client, "device_add", **disk | {"queue-size": 3})
        assert "'id' is missing" in await _refused(client, "device_del")
        assert toy.devices == []


async def test_qmp_shell_works_unchanged(directory: Path) -> None:
    shell = shutil.which("qmp-shell", path=str(Path(sys.executable).parent))
    assert shell, "qmp-shell comes with the package qemu.qmp"
    async with monitored(directory) as (toy, _, path):
        process = await asyncio.create_subprocess_exec(
            *(shell, path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"HOME": str(directory)},
        )
        typed = b"query-status\nstop\nquery-status\nchardev-add id=c2 backend.type=socket\n"
        said, _ = await asyncio.wait_for(process.communicate(typed), 20)
    assert b"Connected" in said
    assert b'"status": "running"' in said
    assert b'"status": "paused"' in said
    assert b"parameter 'data' is missing" in said
    assert toy.status == "paused"
