"""The daemon's connection to the plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nagaya.daemon.parts import DiskCounters
from nagaya.errors import NotFoundError, UnavailableError
from nagaya.paths import Paths
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.conditions import Conditions
from nagaya.plane.config import BlkDevice, CopyJob, Device, Layer
from nagaya.plane.demand import WorkerDemand
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.plane.ports import Flow, PortRules, PortStatus
from nagaya.plane.shares import ArbiterStatus, Resource, ShareNode, WaitRow
from nagaya.progress import Progress

if TYPE_CHECKING:
    from nagaya.plane.client import DeviceStatus, PlaneClient


class PlaneLink:
    """One connection to the plane, made at first use and when it was lost; starts the plane if none runs."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._client: PlaneClient | None = None
        self._pid: int | None = None
        self._connecting = asyncio.Lock()
        self._connected = asyncio.Event()

    async def prepare(self) -> None:
        """Have it run and be connected, so that the first start of a machine is quick."""
        await self._connection()

    async def device_add(self, device: Device) -> None:
        """Serve a device."""
        await (await self._connection()).device_add(device)

    async def device_del(self, device_id: str) -> None:
        """Stop serving one. A plane that does not run serves none."""
        client = await self._connection(start=False)
        if client is None:
            raise NotFoundError(f"the plane does not run, it has no device {device_id}")
        await client.device_del(device_id)

    async def device_ids(self) -> frozenset[str]:
        """The devices that are served; none if the plane does not run."""
        client = await self._connection(start=False)
        return frozenset() if client is None else frozenset(one.id for one in await client.query_devices())

    async def set_shares(
        self, nodes: Sequence[ShareNode], remove: Sequence[str] = (), *, resource: Resource = "disk"
    ) -> None:
        """Set knobs. A plane that does not run has no nodes."""
        client = await self._connection(start=False)
        if client is not None:
            await client.set_shares(nodes, remove, resource=resource)

    async def counters(self) -> Sequence[DiskCounters]:
        """Of each disk; none if the plane does not run."""
        client = await self._connection(start=False)
        return (
            []
            if client is None
            else [_counters(one) for one in await client.query_devices() if one.device.driver == "blk"]
        )

    async def balloons(self) -> Sequence[BalloonStatus]:
        """The balloons; none if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_balloons()

    async def set_balloon(self, device_id: str, size: int | None, *, stats_ms: int | None = None) -> None:
        """Ask a guest for memory. A plane that does not run has no balloons."""
        client = await self._connection(start=False)
        if client is not None:
            await client.set_balloon(device_id, size, stats_ms=stats_ms)

    async def hot_memory(self) -> Sequence[HotMemoryStatus]:
        """The machines that may plug memory; none if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_memory()

    async def set_memory(self, device_id: str, requested: int) -> None:
        """Ask a guest to have so many bytes plugged."""
        await (await self._connection()).set_memory(device_id, requested)

    async def arbiters(self) -> Sequence[ArbiterStatus]:
        """The arbiters; none if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_arbiter()

    async def demand(self, *, anew: bool) -> Sequence[WorkerDemand]:
        """What is asked of each disk; nothing if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_demand(anew)

    async def objectives(self) -> AsyncIterator[tuple[str, bool]]:
        """Objectives that are met or missed."""
        await self._connected.wait()
        if self._client is not None and self._client.connected:
            async for event in self._client.events():
                if event.name == "ARBITER_OBJECTIVE":
                    yield str(event.facts["id"]), bool(event.facts["met"])

    async def waits(self, since: int) -> Sequence[WaitRow]:
        """Who waited; nobody if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_waits(None, since)

    async def ports(self, network: str | None) -> Sequence[PortStatus]:
        """The ports of networks; none if the plane does not run."""
        client = await self._connection(start=False)
        return () if client is None else await client.query_ports(network)

    async def set_port(self, device_id: str, rules: PortRules, *, link: bool) -> None:
        """Give a port other rules. Raises `NotFoundError` if the plane does not run or has no such port."""
        await (await self._port_connection(device_id)).set_port(device_id, rules, link=link)

    async def set_port_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a port's link, or end them."""
        await (await self._port_connection(device_id)).set_port_faults(device_id, faults)

    async def flows(self, device_id: str, limit: int) -> Sequence[Flow]:
        """The connections of a port with the most bytes."""
        client: PlaneClient = await self._port_connection(device_id)
        return await client.query_flows(device_id, limit)

    async def capture_start(self, device_id: str, path: str, *, snaplen: int, limit: int) -> None:
        """Write a port's frames to the FIFO at `path`."""
        client = await self._port_connection(device_id)
        await client.capture_start(device_id, path, snaplen=snaplen, limit=limit)

    async def capture_stop(self, device_id: str) -> tuple[int, int]:
        """End it: frames written, and missed."""
        client: PlaneClient = await self._port_connection(device_id)
        return await client.capture_stop(device_id)

    async def conditions(self) -> AsyncIterator[Conditions]:
        """The disks and NICs that are not well, at every change."""
        await self._connected.wait()
        if self._client is not None and self._client.connected:
            async for conditions in self._client.conditions():
                yield conditions

    async def layers(self) -> Mapping[str, tuple[Layer, ...]]:
        """The image files of each disk that is served."""
        client = await self._connection(start=False)
        devices = [] if client is None else [one.device for one in await client.query_devices()]
        return {one.id: one.layers for one in devices if isinstance(one, BlkDevice)}

    async def set_layers(self, device_id: str, layers: Sequence[Layer]) -> None:
        """Serve a disk from other image files."""
        await (await self._connection()).set_layers(device_id, layers)

    async def work(self, job: CopyJob, step: str, progress: Progress) -> None:
        """Do host work on disks."""
        from nagaya.plane.copying import run

        await run(await self._connection(), job, step, progress)

    async def set_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a disk, or end them."""
        await (await self._connection()).set_faults(device_id, faults)

    async def faulted(self) -> Mapping[str, int]:
        """Requests that a fault has met, by device."""
        client = await self._connection(start=False)
        return {} if client is None else {one.id: one.faulted for one in await client.query_devices()}

    async def lost(self) -> None:
        """Return when the plane has gone away."""
        await self._connected.wait()
        if self._client is not None:
            await self._client.wait_closed()

    async def close(self) -> None:
        """Drop the connection."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    def pid(self) -> int | None:
        """The holder's process, if connected."""
        return self._pid if self._client is not None and self._client.connected else None

    async def _port_connection(self, device_id: str) -> Any:
        client = await self._connection(start=False)
        if client is None:
            raise NotFoundError(f"the plane does not run, it has no port {device_id}")
        return client

    async def _connection(self, *, start: bool = True) -> Any:
        async with self._connecting:
            if self._client is not None and self._client.connected:
                return self._client
            await self.close()
            self._connected.clear()
            from nagaya.plane.client import PlaneClient

            try:
                self._client = await PlaneClient.connect(self._paths.plane_socket)
            except UnavailableError:
                if not start:
                    return None
                from nagaya.plane.launch import ensure_holder

                await ensure_holder(self._paths)
                self._client = await PlaneClient.connect(self._paths.plane_socket)
            self._pid = await self._client.pid()
            await _end_work(self._client)
            self._connected.set()
            return self._client


async def _end_work(client: PlaneClient) -> None:
    """Give up host work that a daemon before us began: nobody waits for it, and it keeps its disks locked."""
    for job in await client.query_jobs():
        if job.status != "concluded":
            await client.job_cancel(job.id)


def _counters(status: DeviceStatus) -> DiskCounters:
    return DiskCounters(
        id=status.id,
        reads=status.reads,
        writes=status.writes,
        flushes=status.flushes,
        discards=status.discards,
        read_bytes=status.read_bytes,
        written_bytes=status.written_bytes,
        errors=status.errors,
        in_flight=status.inflight,
    )
