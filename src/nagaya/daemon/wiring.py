"""The real parts below the daemon, put together. What is slow to import is imported at its first use."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nagaya.daemon.parts import BaseImage, DiskCounters, HostNetworks, Parts
from nagaya.daemon.uids import network_uid, tool_uid
from nagaya.engines.engine import Engine
from nagaya.engines.jailed import Jails
from nagaya.engines.kvm import KvmEngine
from nagaya.engines.select import Engines
from nagaya.engines.uml import UmlEngine
from nagaya.errors import NotFoundError, SpecError, UnavailableError
from nagaya.images.formats import Format
from nagaya.kernel import Kernel
from nagaya.models.image import KernelInfo
from nagaya.paths import MachinePaths, Paths
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.conditions import Conditions
from nagaya.plane.config import BlkDevice, CopyJob, Device, Layer
from nagaya.plane.demand import WorkerDemand
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.plane.ports import Flow, PortRules, PortStatus
from nagaya.plane.shares import ArbiterStatus, Resource, ShareNode, WaitRow
from nagaya.progress import Progress
from nagaya.resources.pressure import GroupPressure, group_pressure, host_pressure
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from nagaya.images.recipe import Recipe
    from nagaya.images.store import Image
    from nagaya.plane.client import DeviceStatus, PlaneClient
    from nagaya.resources.cgroups import Cgroup


def real_parts(paths: Paths) -> Parts:
    """Everything below a daemon of `paths`."""
    jails = Jails(paths)
    uml = UmlEngine(paths, jails)
    engines = Engines(
        uml, KvmEngine(paths, jails, _cpu_runs_guest_kernels), _cpu_runs_guest_kernels, paths.kernels
    )
    plane = PlaneLink(paths)

    async def prepare() -> None:
        await asyncio.gather(jails.prepare(), plane.prepare())

    return Parts(
        engine=engines.select,
        plane=plane,
        images=Images(paths),
        kernels=Kernels(paths, engines.select),
        networks=_networks(paths),
        agent=_GuestAgent,
        create_overlay=_create_overlay,
        zygote_pid=lambda: jails.zygote_pid,
        prepare=prepare,
        balance=uml.balance,
        usage=lambda machine_id: _usage(jails.group(machine_id)),
        rank=jails.rank,
        pressure=lambda machine_id: _pressure(jails.group(machine_id)),
        host_pressure=host_pressure,
        group=jails.group,
    )


def _usage(group: Cgroup | None) -> tuple[int | None, int | None]:
    return (None, None) if group is None else (group.usage_us(), group.memory_bytes())


def _pressure(group: Cgroup | None) -> GroupPressure:
    return GroupPressure() if group is None else group_pressure(group)


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


@functools.cache
def _cpu_runs_guest_kernels() -> bool:
    """Probed once: it takes some milliseconds, and a host does not change while it runs."""
    from nagaya.kvm.probe import probe

    return probe().native


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
            self._connected.set()
            return self._client


def _networks(paths: Paths) -> HostNetworks:
    from nagaya.networks import host as networks

    host = networks.HostNetworks(paths, network_uid(paths))
    if os.environ.get("NAGAYA_DEFAULT_NETWORK") == "none":
        host.default = ""
    return host


class Images:
    """The image store, as `parts.ImageStore`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def list(self) -> Sequence[BaseImage]:
        """All images, by name."""
        return [_base(image) for image in self._store().all()]

    def resolve(self, name: str) -> BaseImage:
        """The image called `name`."""
        return _base(self._store().resolve(name))

    def blob(self, digest: str) -> Path:
        """Where the content with this digest is."""
        return self._paths.images / f"{digest}.raw"

    def remove(self, name: str, in_use: frozenset[str]) -> None:
        """Remove it, if no machine needs it."""
        self._store().remove(name, in_use)

    def recipe(self, body: Mapping[str, Any]) -> Recipe:
        """Parse a recipe."""
        from pydantic import ValidationError

        from nagaya import validation
        from nagaya.images.recipe import Recipe

        try:
            return Recipe.model_validate(body)
        except ValidationError as error:
            found = validation.problems(error, Recipe)
            raise SpecError("\n".join(f"recipe: {problem}" for problem in found)) from error

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Whether `name` is there and was built from that recipe."""
        return any(image.name == name and image.recipe == recipe for image in self._store().all())

    async def build(self, name: str, recipe: Recipe, progress: Progress) -> BaseImage:
        """Build it."""
        from nagaya.images.build import build

        return _base(await build(self._paths, name, recipe, progress))

    async def import_file(
        self, name: str, path: Path, image_format: Format | None, progress: Progress
    ) -> BaseImage:
        """Copy the disk in a file into the store."""
        from nagaya.images.importing import import_image
        from nagaya.images.qemuimg import QemuImg

        qemu = QemuImg(tool_uid(self._paths))
        return _base(await import_image(self._store(), qemu, name, path, image_format, progress=progress))

    def _store(self) -> Any:
        from nagaya.images.store import ImageStore

        return ImageStore(self._paths)


class Kernels:
    """The guest kernels, as `parts.KernelStore`."""

    def __init__(self, paths: Paths, engine: Callable[[MachineSpec], Engine]) -> None:
        self._paths = paths
        self._engine = engine

    def list(self) -> Sequence[KernelInfo]:
        """All kernels."""
        from nagaya.images.kernels import default_uml_kernel, list_kernels

        try:
            default = default_uml_kernel(self._paths).name
        except UnavailableError:
            default = ""
        return [_kernel(kernel, kernel.name == default) for kernel in list_kernels(self._paths)]

    def choose(self, spec: MachineSpec) -> Kernel:
        """The one that `spec` names, or the default."""
        from nagaya.images.kernels import default_uml_kernel, find_kernel

        wanted = spec.boot.kernel
        if not wanted and self._engine(spec).name == "kvm":
            return find_kernel(self._paths, "kvm")
        if not wanted:
            return default_uml_kernel(self._paths)
        if not wanted.startswith("/"):
            return find_kernel(self._paths, wanted)
        if not Path(wanted).is_file():
            raise NotFoundError(f"boot.kernel: there is no file {wanted}", field="boot.kernel")
        return Kernel(wanted, wanted, "a file")

    async def build(self, name: str, progress: Progress) -> KernelInfo:
        """Build our own."""
        from nagaya.images.kernels import build_named_kernel

        return _kernel(await build_named_kernel(self._paths, name, progress), name == "uml")


class _GuestAgent:
    """`nagaya.agent.GuestAgent` as `parts.Agent`."""

    def __init__(self, name: str, paths: MachinePaths) -> None:
        from nagaya.agent import GuestAgent

        self._client = GuestAgent(name, paths.agent_socket)

    async def ping(self, seconds: float) -> None:
        await self._client.ping(seconds)

    async def shutdown(self) -> None:
        await self._client.shutdown()

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> tuple[int, bytes, bytes, bool]:
        return await self._client.exec(argv, env=env, stdin=stdin, timeout=seconds)

    async def freeze(self) -> int:
        return await self._client.fs_freeze()

    async def thaw(self) -> int:
        return await self._client.fs_thaw()

    async def close(self) -> None:
        await self._client.close()


def _create_overlay(path: str, size: int, backing_path: str, backing_format: str) -> None:
    from nagaya._core import qcow2_create

    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    qcow2_create(path, size, backing_path, backing_format)


def _base(image: Image) -> BaseImage:
    recipe = image.recipe.model_dump(mode="json") if image.recipe else None
    created = datetime.fromisoformat(image.created).timestamp()
    return BaseImage(image.name, image.digest, Path(image.path), image.size, created, image.os, recipe)


def _kernel(kernel: Kernel, default: bool) -> KernelInfo:
    return KernelInfo(kernel.name, kernel.path, kernel.origin, kernel.builtin_virtio, default)
