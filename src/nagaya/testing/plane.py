"""A plane that serves no data: it remembers its devices in a file and echoes on the consoles."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nagaya.daemon.parts import DiskCounters
from nagaya.errors import ConflictError, NotFoundError, UnavailableError
from nagaya.paths import Paths
from nagaya.plane.balloons import BalloonStats, BalloonStatus
from nagaya.plane.conditions import Conditions, after
from nagaya.plane.config import ConsoleDevice, CopyJob, Device, Layer, UplinkDevice
from nagaya.plane.demand import WorkerDemand
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.plane.ports import Flow, PortRules, PortStatus
from nagaya.plane.shares import (
    ArbiterStatus,
    NodeStatus,
    Resource,
    ShareNode,
    WaitRow,
    shares_from_json,
    wait_from_json,
)
from nagaya.progress import Progress
from nagaya.testing.engine import UNSUPPORTED_WEIGHT
from nagaya.testing.hostwork import work

CAPACITY_IOPS = 10_000
RATE = 100_000_000  # bytes/s of the network's uplink


class FakePlane:
    """Devices outlive the daemon, as in the real plane. Devices in `refuse` ("disk0") cannot be added."""

    def __init__(self, paths: Paths) -> None:
        self.refuse: set[str] = set()
        self.slow: set[str] = set()
        self._captures: dict[str, int] = {}
        self._file = paths.run / "fake-plane.json"
        self._shares_files: dict[Resource, Path] = {
            "disk": paths.run / "fake-disk-shares.json",
            "network": paths.run / "fake-network-shares.json",
        }
        self._waits_file = paths.run / "fake-waits.json"
        self._balloons_file = paths.run / "fake-balloons.json"
        self._judged: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self._consoles: dict[str, asyncio.Server] = {}
        self._lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._conditions: Conditions = {}

    @property
    def devices(self) -> dict[str, dict[str, Any]]:
        """All devices by id."""
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        return found

    def lose_all(self) -> None:
        """As if the holder had been killed."""
        self._save({})
        for console in self._consoles.values():
            console.close()
        self._lost.set()

    async def device_add(self, device: Device) -> None:
        """Remember it."""
        devices = self.devices
        if device.id in devices:
            raise ConflictError(f"the plane has a device {device.id} already")
        if device.id.partition("/")[2] in self.refuse:
            raise UnavailableError(f"the fake plane was told to refuse {device.id}")
        if not isinstance(device, UplinkDevice) and not Path(device.socket).parent.is_dir():
            raise NotFoundError(f"there is no directory for {device.socket}")
        self._save(devices | {device.id: asdict(device)})
        await self.set_shares(
            getattr(device, "shares", ()), resource="network" if device.driver == "net" else "disk"
        )
        if isinstance(device, ConsoleDevice):
            _begin(device)
            self._consoles[device.id] = await asyncio.start_unix_server(_echo, device.console_socket)

    async def device_del(self, device_id: str) -> None:
        """Forget it."""
        devices = self.devices
        if device_id not in devices:
            raise NotFoundError(f"the plane has no device {device_id}")
        del devices[device_id]
        self._save(devices)
        self.happen("DEVICE_DELETED", device_id)
        if device_id in self._captures:
            await self.capture_stop(device_id)
        console = self._consoles.pop(device_id, None)
        if console is not None:
            console.close()

    async def device_ids(self) -> frozenset[str]:
        """What is remembered."""
        return frozenset(self.devices)

    async def ports(self, network: str | None) -> Sequence[PortStatus]:
        """Each has sent 10 frames of 100 bytes, and got none; faults have cost 3 of them."""
        found = []
        for key, one in self.devices.items():
            if "network" in one and network in (None, one["network"]):
                known = self._conditions.get(key)
                faults = None if known is None else known.faults
                drops = {"fault-loss": 3} if faults else {}
                link = one.get("link", True)
                counts = (0, 0, 10, 1000, drops, 1)
                found.append(PortStatus(key, one["network"], one.get("mac"), link, True, *counts, faults))
        return found

    async def set_port(self, device_id: str, rules: PortRules, *, link: bool) -> None:
        """Remember them, unless the whole id is in `refuse`."""
        devices = self.devices
        if device_id not in devices:
            raise NotFoundError(f"the plane has no device {device_id}")
        if device_id in self.refuse:
            raise UnavailableError(f"the fake plane was told to refuse {device_id}")
        devices[device_id] |= {"rules": asdict(rules), "link": link}
        self._save(devices)

    async def set_port_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Remember them."""
        if device_id not in self.devices:
            raise NotFoundError(f"there is no port {device_id}")
        self.happen("PORT_FAULTS", device_id, faults=faults)

    async def flows(self, device_id: str, limit: int) -> Sequence[Flow]:
        """One, to the first machine of 10.9.0.0/24."""
        ends = ("10.9.0.7", 40000, "10.9.0.2", 443)
        return [Flow("tcp", "out", "open", *ends, 0, 12, 1500, 20, 30_000, 65_000, 100)]

    async def capture_start(self, device_id: str, path: str, *, snaplen: int, limit: int) -> None:
        """Three frames of 60 bytes come, and no more."""
        if device_id in self._captures:
            raise ConflictError(f"port {device_id} is captured already")
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, snaplen, 1))
        os.write(fd, (struct.pack("<IIII", 1, 2, 60, 60) + bytes(60)) * 3)
        self._captures[device_id] = fd

    async def capture_stop(self, device_id: str) -> tuple[int, int]:
        """Three were written, one was missed."""
        if device_id not in self._captures:
            raise NotFoundError(f"port {device_id} is not captured")
        os.close(self._captures.pop(device_id))
        return 3, 1

    async def set_shares(
        self, nodes: Sequence[ShareNode], remove: Sequence[str] = (), *, resource: Resource = "disk"
    ) -> None:
        """Remember them, unless a weight is 6666."""
        if any(node.weight == UNSUPPORTED_WEIGHT for node in nodes):
            raise UnavailableError("the fake plane was told to refuse")
        kept = {one: node for one, node in self._shares(resource).items() if one not in remove}
        kept |= {node.id: node for node in nodes}
        self._shares_files[resource].write_text(json.dumps([asdict(node) for node in kept.values()]))

    async def counters(self) -> Sequence[DiskCounters]:
        """Each disk reads 4 KiB a thousand times a second."""
        reads = int(time.monotonic() * 1000)
        disks = [device for device in self.devices if "/disk" in device]
        return [DiskCounters(disk, reads, 0, 0, 0, reads * 4096, 0, 0, 1) for disk in disks]

    async def arbiters(self) -> Sequence[ArbiterStatus]:
        """One disk for all, which can do `CAPACITY_IOPS`, and one network of `RATE`; nobody uses them."""
        disk, network = (_idle(self._shares(kind), self.devices) for kind in self._shares_files)
        return [
            ArbiterStatus("disk-0:0", 8, 2000, 0, 0, CAPACITY_IOPS, 0, disk),
            ArbiterStatus("net-default", 0, 0, 0, 0, 0, RATE, network, "network"),
        ]

    async def demand(self, *, anew: bool) -> Sequence[WorkerDemand]:
        """Each disk reads 4 KiB, 1 ms after the answer before; the device takes 100 us, one by one."""
        period = {"number": 60, "count": 1000, "gap_us": 1_000_000, "span_us": 1_100_000}
        pattern = {
            "recorded_us": 1_100_000,
            "mix": [{"kind": "read", "count": 1000, "bytes": 4_096_000}],
            "periods": [{**period, "requests": 1000, "depth": 1000, "think_us": 0}],
            "squares": [1e9, 1.3e9],
            "p99_us": 100.0,
        }
        read = {"kind": "read", "bytes": 4096, "count": 1000}
        cells = [
            {"number": load, "load": load, **read, "times_ns": [load * 100_000] * 17} for load in (1, 2, 4, 8)
        ]
        disks = sorted(device for device in self.devices if "/disk" in device)
        return [WorkerDemand("disk-0:0", tuple(cells), tuple({"id": disk, **pattern} for disk in disks))]

    async def balloons(self) -> Sequence[BalloonStatus]:
        """Each is as large as was asked; what guests say a test writes into `fake-balloons.json`."""
        known = self._balloons()
        return [
            BalloonStatus(**{**_EMPTY, "id": one, **known.get(one, {}), **_said(known.get(one, {}))})
            for one in self.devices
            if one.endswith("/balloon0")
        ]

    async def set_balloon(self, device_id: str, size: int | None, *, stats_ms: int | None = None) -> None:
        """Remember it; the guest has done it."""
        if device_id not in self.devices:
            raise NotFoundError(f"there is no balloon {device_id}")
        known = self._balloons()
        one = known.setdefault(device_id, {})
        one |= {} if size is None else {"size": size, "actual": size}
        one |= {} if stats_ms is None else {"stats_ms": stats_ms}
        self._balloons_file.write_text(json.dumps(known))

    async def hot_memory(self) -> Sequence[HotMemoryStatus]:
        """Guests give and take memory at once; those whose ids are in `slow` keep what they have."""
        rows = {key: one for key, one in self.devices.items() if key.endswith("/mem0")}
        return [
            HotMemoryStatus(
                id=key,
                start=one["start"],
                size=one["size"],
                block=2 << 20,
                requested=one["requested"],
                plugged=one.get("plugged", one["requested"]),
                connected=True,
            )
            for key, one in rows.items()
        ]

    async def set_memory(self, device_id: str, requested: int) -> None:
        """The guest has done it, unless it is slow."""
        devices = self.devices
        one = devices[device_id]
        plugged = one.get("plugged", one["requested"]) if device_id in self.slow else requested
        self._save(devices | {device_id: one | {"requested": requested, "plugged": plugged}})

    def _balloons(self) -> dict[str, dict[str, Any]]:
        try:
            found: dict[str, dict[str, Any]] = json.loads(self._balloons_file.read_text())
        except FileNotFoundError:
            return {}
        return found

    def judge(self, node_id: str, met: bool) -> None:
        """As if the arbiter had found that an objective is met, or is not."""
        self._judged.put_nowait((node_id, met))

    async def objectives(self) -> AsyncIterator[tuple[str, bool]]:
        """What `judge` said."""
        while True:
            yield await self._judged.get()

    async def waits(self, since: int) -> Sequence[WaitRow]:
        """What a test wrote into `fake-waits.json`, whenever it was."""
        try:
            return [wait_from_json(row) for row in json.loads(self._waits_file.read_text())]
        except FileNotFoundError:
            return ()

    @property
    def shares(self) -> dict[str, ShareNode]:
        """All nodes of disks by id."""
        return self._shares("disk")

    @property
    def network_shares(self) -> dict[str, ShareNode]:
        """All nodes of networks by id."""
        return self._shares("network")

    def _shares(self, resource: Resource) -> dict[str, ShareNode]:
        try:
            rows = json.loads(self._shares_files[resource].read_text())
        except FileNotFoundError:
            return {}
        return {node.id: node for node in shares_from_json(rows)}

    def happen(self, event: str, device_id: str, **facts: object) -> None:
        """As if the plane had had this event of one of its disks."""
        self._conditions = after(self._conditions, event, {"id": device_id, **facts})
        self._changed.set()

    async def conditions(self) -> AsyncIterator[Conditions]:
        """What `happen` came to."""
        while True:
            self._changed.clear()
            yield self._conditions
            await self._changed.wait()

    async def layers(self) -> Mapping[str, tuple[Layer, ...]]:
        """Of the disks."""
        disks = {key: one["layers"] for key, one in self.devices.items() if "layers" in one}
        return {key: tuple(Layer(one["path"], one["format"]) for one in rows) for key, rows in disks.items()}

    async def set_layers(self, device_id: str, layers: Sequence[Layer]) -> None:
        """Remember them."""
        devices = self.devices
        devices[device_id]["layers"] = [asdict(one) for one in layers]
        self._save(devices)

    async def work(self, job: CopyJob, step: str, progress: Progress) -> None:
        """By a worker of its own."""
        await work(job, step, progress)

    async def set_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Remember them."""
        if device_id not in self.devices:
            raise NotFoundError(f"there is no device {device_id}")
        self.happen("DEVICE_FAULTS", device_id, faults=faults)

    async def faulted(self) -> Mapping[str, int]:
        """Three each."""
        return dict.fromkeys(self._conditions, 3)

    async def lost(self) -> None:
        """Return after `lose_all`."""
        await self._lost.wait()
        self._lost.clear()

    async def close(self) -> None:
        """Stop echoing."""
        for console in self._consoles.values():
            console.close()

    def pid(self) -> int | None:
        """There is no process."""
        return None

    def _save(self, devices: dict[str, dict[str, Any]]) -> None:
        partial = self._file.with_suffix(".new")
        partial.write_text(json.dumps(devices))
        partial.rename(self._file)


_EMPTY: dict[str, Any] = {
    "size": 0,
    "actual": 0,
    "reported": 0,
    "inflated": 0,
    "deflated": 0,
    "taken_back": 0,
}
_EMPTY |= {"driver": True, "stats_ms": 5000, "stats": None, "stats_at": None}


def _said(known: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics that came just now."""
    if not known.get("stats"):
        return {}
    return {"stats": BalloonStats(**known["stats"]), "stats_at": time.monotonic_ns()}


def _idle(shares: Mapping[str, ShareNode], devices: Collection[str]) -> tuple[NodeStatus, ...]:
    """The nodes of disks that are there, and all of NICs: the fake has no ports."""
    counts: dict[str, Any] = dict.fromkeys(
        ("dispatched", "joined", "bytes", "waiting", "in_flight", "p99_us"), 0
    )
    nodes = [NodeStatus(**asdict(node), **counts, objective="none") for node in shares.values()]
    return tuple(node for node in nodes if "/disk" not in node.id or node.id in devices)


def _begin(device: ConsoleDevice) -> None:
    Path(device.log).write_bytes(b"fake console\r\n")
    Path(device.console_socket).unlink(missing_ok=True)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(b"fake console\r\n")
        while received := await reader.read(4096):
            writer.write(received)
            await writer.drain()
    writer.close()
