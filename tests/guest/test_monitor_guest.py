"""A machine's process as a management program sees it: by QEMU's client, its output and its status."""

# ruff: noqa: ASYNC240 - each test has an event loop of its own

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from nagaya import _core
from nagaya.kvm.config import DeviceConfig, MachineConfig
from nagaya.kvm.ending import STATUS, Ending, Reason, read_ending
from nagaya.kvm.machine import SPARE_SLOTS
from nagaya.testing.payload import build

pytestmark = [pytest.mark.kvm, pytest.mark.anyio]

MakeDisk = Callable[..., DeviceConfig]

HERE = Path(__file__).parent
PROGRAM = (
    "import json, sys; from nagaya.kvm.process import main; main(json.load(sys.stdin), {}, lambda: None)"
)
IDLE, END, TRIPLE_FAULT, _, _, _, PANIC, RESET, _, SPIN, BUTTON = range(11)  # what the payload `acts` knows


@dataclass
class Running:
    """The process of a machine, and a client of its monitor that collects events."""

    process: asyncio.subprocess.Process
    client: QMPClient
    events: EventListener
    output: str = ""

    async def execute(self, command: str, **arguments: Any) -> Any:
        return await self.client.execute(command, arguments)

    async def said(self, text: str, times: int = 1) -> None:
        assert self.process.stdout
        async with asyncio.timeout(60):
            while self.output.count(text) < times:
                chunk = await self.process.stdout.read(4096)
                assert chunk, self.output
                self.output += chunk.decode(errors="replace")

    async def event(self, name: str) -> dict[str, Any]:
        """The data of the next event, which is called `name`."""
        message: Any = await asyncio.wait_for(self.events.get(), 60)
        assert message["event"] == name, message
        data: dict[str, Any] = message.get("data", {})
        return data

    async def ending(self) -> Ending | None:
        """Its last words; its exit status says the same."""
        assert self.process.stdout
        rest = await asyncio.wait_for(self.process.stdout.read(), 60)
        self.output += rest.decode(errors="replace")
        ending = read_ending(self.output)
        assert ending is not None, self.output
        assert await self.process.wait() == STATUS[ending.reason]
        return ending


@contextlib.asynccontextmanager
async def running(directory: Path, kernel: Path, cmdline: str, **fields: Any) -> AsyncIterator[Running]:
    qmp = str(directory / "qmp.sock")
    config = MachineConfig("web", "u-1", 64 << 20, kernel=str(kernel), cmdline=cmdline, qmp=qmp, **fields)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdin
    process.stdin.write(json.dumps(config.to_json()).encode())
    process.stdin.close()
    client = QMPClient("test")
    try:
        machine = Running(process, client, EventListener())
        await machine.said("\n")
        client.register_listener(machine.events)
        await client.connect(qmp)
        yield machine
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        with contextlib.suppress(Exception):
            await client.disconnect()


async def test_stop_and_cont_stop_and_run_the_guest(directory: Path) -> None:
    async with running(directory, *acts(BUTTON), cpus=2) as machine:
        assert (await machine.execute("query-status"))["status"] == "running"
        assert await machine.execute("query-name") == {"name": "web"}
        cpus = await machine.execute("query-cpus-fast")
        threads = {int(task.name) for task in Path(f"/proc/{machine.process.pid}/task").iterdir()}
        assert [cpu["cpu-index"] for cpu in cpus] == [0, 1]
        assert {cpu["thread-id"] for cpu in cpus} <= threads - {machine.process.pid}
        await machine.execute("stop")
        await machine.event("STOP")
        assert (await machine.execute("query-status"))["status"] == "paused"
        await machine.execute("system_powerdown")  # pressed while nobody runs: not lost
        await machine.event("POWERDOWN")
        await machine.execute("cont")
        await machine.event("RESUME")
        await machine.said("PRESSED")
        assert await machine.event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}
        assert await machine.ending() == Ending(Reason.POWEROFF)


async def test_quit_ends_it_and_says_so(directory: Path) -> None:
    async with running(directory, *acts(SPIN)) as machine:
        assert await machine.execute("quit") == {}
        assert await machine.event("SHUTDOWN") == {"guest": False, "reason": "host-qmp-quit"}
        assert await machine.ending() == Ending(Reason.QUIT)


@pytest.mark.parametrize(
    ("do", "reason", "events"),
    [
        (END, Reason.POWEROFF, {"SHUTDOWN": {"guest": True, "reason": "guest-shutdown"}}),
        (RESET, Reason.RESET, {"SHUTDOWN": {"guest": True, "reason": "guest-reset"}}),
        (TRIPLE_FAULT, Reason.FAULT, {"SHUTDOWN": {"guest": False, "reason": "host-error"}}),
        (
            PANIC,
            Reason.PANIC,
            {
                "GUEST_PANICKED": {"action": "poweroff"},
                "SHUTDOWN": {"guest": True, "reason": "guest-panic"},
            },
        ),
    ],
)
async def test_how_a_guest_ends_is_told_by_events_and_by_its_status(
    directory: Path, do: int, reason: Reason, events: dict[str, dict[str, Any]]
) -> None:
    async with running(directory, *acts(do, wait=1)) as machine:
        await machine.execute("system_powerdown")
        await machine.event("POWERDOWN")
        for name, facts in events.items():
            assert await machine.event(name) == facts
        ending = await machine.ending()
        assert ending is not None
        assert ending.reason is reason
        assert (ending.cause == "") == (reason is Reason.POWEROFF)


async def test_a_reset_starts_the_guest_anew(directory: Path, disk: MakeDisk) -> None:
    """By the guest, and by the monitor, with a device that the plane serves all the while."""
    device = disk()
    async with running(directory, *acts(RESET, wait=1), devices=(device,), reboot="reset") as machine:
        await machine.execute("system_powerdown")
        await machine.event("POWERDOWN")
        assert await machine.event("RESET") == {"guest": True, "reason": "guest-reset"}
        await machine.said("READY", 2)
        await machine.execute("system_reset")
        assert await machine.event("RESET") == {"guest": False, "reason": "host-qmp-system-reset"}
        await machine.said("READY", 3)
        assert (await machine.execute("query-status"))["status"] == "running"
        await machine.execute("quit")


async def test_a_disk_is_plugged_used_and_unplugged(directory: Path, disk: MakeDisk) -> None:
    device = disk("disk1", size=1 << 16)
    address = {"type": "unix", "data": {"path": device.socket}}
    chardev = {"type": "socket", "data": {"addr": address, "server": False}}
    deleted = {"device": "disk1", "path": "/machine/peripheral/disk1"}
    async with running(directory, build(HERE / "disk_hotplug.c"), "disks=2") as machine:
        await machine.said("LISTENING")
        await machine.execute("chardev-add", id="c1", backend=chardev)
        for times in (1, 2):
            assert "disk1" not in _names(await machine.execute("query-pci"))
            with pytest.raises(ExecuteError, match="not found"):
                await machine.execute("device_del", id="disk1")
            await machine.execute("device_add", driver="vhost-user-blk-pci", id="disk1", chardev="c1")
            with pytest.raises(ExecuteError, match="already"):
                await machine.execute("device_add", driver="vhost-user-blk-pci", id="disk1", chardev="c1")
            await machine.said("\nPLUGGED", times)
            assert "disk1" in _names(await machine.execute("query-pci"))
            await machine.execute("device_del", id="disk1")
            assert await machine.event("DEVICE_DELETED") == deleted
        await machine.said("EXIT 0")  # it ends with the last
    assert any((directory / "disk1.raw").read_bytes())


async def test_query_pci_lists_what_the_guest_sees(directory: Path, disk: MakeDisk) -> None:
    async with running(directory, *acts(IDLE), devices=(disk(),)) as machine:
        (bus,) = await machine.execute("query-pci")
        found = {one["qdev_id"]: one for one in bus["devices"] if one["qdev_id"]}
        assert found["disk0"]["id"]["vendor"] == 0x1AF4
        assert [region["bar"] for region in found["disk0"]["regions"]] == [0, 1]
        ports = [one for one in bus["devices"] if "pci_bridge" in one]
        assert len(ports) == SPARE_SLOTS
        with pytest.raises(ExecuteError, match="root bus"):
            await machine.execute("device_del", id="disk0")


async def test_a_plane_that_hangs_up_harms_the_device_only(
    directory: Path, plane: _core.Plane, disk: MakeDisk
) -> None:
    async with running(directory, *acts(IDLE), devices=(disk(),)) as machine:
        plane.device_del("disk0")
        await asyncio.sleep(0.2)
        assert (await machine.execute("query-status"))["status"] == "running"
        await machine.execute("stop")
        await machine.event("STOP")


def acts(do: int, *, wait: int = 0) -> tuple[Path, str]:
    """The payload and what it is to do, `wait`: after the power button."""
    return build("acts"), f"do={do} wait={wait}"


def _names(buses: list[dict[str, Any]]) -> set[str]:
    """All names of devices, behind ports too."""
    devices = [device for bus in buses for device in bus["devices"]]
    behind = [one for device in devices for one in device.get("pci_bridge", {}).get("devices", [])]
    return {device["qdev_id"] for device in (*devices, *behind)}
