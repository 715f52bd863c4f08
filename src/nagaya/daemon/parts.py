"""What the daemon needs of the layers below it.

The real ones are put together in `wiring`, fakes in `nagaya.testing`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nagaya.engines.engine import Engine
from nagaya.images.formats import Format
from nagaya.kernel import Kernel
from nagaya.models.image import KernelInfo
from nagaya.networks.config import Forward, Reservation, Uplink
from nagaya.paths import MachinePaths
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.conditions import Conditions
from nagaya.plane.config import CopyJob, Device, Layer
from nagaya.plane.demand import WorkerDemand
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.plane.ports import Flow, PortRules, PortStatus
from nagaya.plane.shares import ArbiterStatus, Resource, ShareNode, WaitRow
from nagaya.progress import Progress
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.pressure import GroupPressure, HostPressure
from nagaya.spec import MachineSpec, NetworkMode, NetworkSpec


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """What one virtual disk has done since it was plugged in."""

    id: str  # "<machine id>/disk0"
    reads: int
    writes: int
    flushes: int
    discards: int
    read_bytes: int
    written_bytes: int
    errors: int
    in_flight: int


class PlaneControl(Protocol):
    """The plane, as far as the daemon commands it."""

    async def device_add(self, device: Device) -> None:
        """Serve a device. Raises `ConflictError` if its id or its image is in use."""

    async def device_del(self, device_id: str) -> None:
        """Stop serving one. Raises `NotFoundError`."""

    async def device_ids(self) -> frozenset[str]:
        """The devices that are served now."""

    async def set_shares(
        self, nodes: Sequence[ShareNode], remove: Sequence[str] = (), *, resource: Resource = "disk"
    ) -> None:
        """Set knobs of the arbiters' nodes, live and for devices to come; forget the nodes `remove`."""

    async def counters(self) -> Sequence[DiskCounters]:
        """What each virtual disk has done."""

    async def balloons(self) -> Sequence[BalloonStatus]:
        """The balloons of all machines, and what their guests say of their memory."""

    async def set_balloon(self, device_id: str, size: int | None, *, stats_ms: int | None = None) -> None:
        """Ask a guest to give `size` bytes, and for statistics every `stats_ms`; None: as before.

        Raises `NotFoundError`.
        """

    async def hot_memory(self) -> Sequence[HotMemoryStatus]:
        """The machines that may plug memory, and what they have plugged."""

    async def set_memory(self, device_id: str, requested: int) -> None:
        """Ask a guest to have so many bytes plugged. Raises `NotFoundError` and `UsageError`."""

    async def arbiters(self) -> Sequence[ArbiterStatus]:
        """The arbiter of each physical disk and of each network."""

    async def demand(self, *, anew: bool) -> Sequence[WorkerDemand]:
        """What is asked of each disk of the host, and how it answers; `anew`: patterns from now on only."""

    def objectives(self) -> AsyncIterator[tuple[str, bool]]:
        """Nodes whose latency objective is met again, or not any more; ends when the plane has gone."""

    async def waits(self, since: int) -> Sequence[WaitRow]:
        """Who waited how long and on what, in the last `since` seconds."""

    async def ports(self, network: str | None) -> Sequence[PortStatus]:
        """The ports of a network, or of all."""

    async def set_port(self, device_id: str, rules: PortRules, *, link: bool) -> None:
        """Give a port other rules, and plug or unplug its cable. Raises `NotFoundError`."""

    async def set_port_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a port's link; None ends them. Raises `NotFoundError` and `UsageError`."""

    async def flows(self, device_id: str, limit: int) -> Sequence[Flow]:
        """The connections of a port with the most bytes. Raises `NotFoundError`."""

    async def capture_start(self, device_id: str, path: str, *, snaplen: int, limit: int) -> None:
        """Write a port's frames to the FIFO at `path`. Raises `ConflictError` if somebody has them."""

    async def capture_stop(self, device_id: str) -> tuple[int, int]:
        """End that: frames written, and missed. Raises `NotFoundError`."""

    def conditions(self) -> AsyncIterator[Conditions]:
        """The disks and NICs that are not well: those of now, then at every change.

        Ends when the plane has gone away.
        """

    async def layers(self) -> Mapping[str, tuple[Layer, ...]]:
        """The image files of each disk that is served, by device id; none if the plane does not run."""

    async def set_layers(self, device_id: str, layers: Sequence[Layer]) -> None:
        """Serve a disk from other image files from now on; after an error it goes on with the old ones."""

    async def work(self, job: CopyJob, step: str, progress: Progress) -> None:
        """Do host work on disks, as a tenant of low weight beside machines; `step` names it in `progress`.

        Cancelled, it ends; what it has copied stays. Raises `ConflictError` if a machine writes the disk.
        """

    async def set_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a disk; None ends them. Raises `NotFoundError` and `UsageError`."""

    async def faulted(self) -> Mapping[str, int]:
        """How many requests of each disk a fault has met, by device id."""

    async def lost(self) -> None:
        """Return when the plane has gone away."""

    async def close(self) -> None:
        """Drop the connection; the plane goes on."""

    def pid(self) -> int | None:
        """The holder's process, if connected."""


class PrivateUplinks(Protocol):
    """Ways out that are one NIC's alone, by MAC address: those of networks of mode `user`."""

    restarted: Callable[[str], Awaitable[None]] | None  # called when one has to be connected anew

    async def ensure(
        self, spec: NetworkSpec, reservation: Reservation, forwards: Sequence[Forward]
    ) -> tuple[Uplink, bool]:
        """Have one; returns it, and whether it is new: then it is not connected to the plane."""

    async def remove(self, mac: str) -> None:
        """Leave nothing of one; it may not be there."""

    async def sweep(self, keep: Collection[str]) -> None:
        """Leave nothing of those that are not in `keep`."""

    def pids(self) -> Mapping[str, int]:
        """Their processes, by MAC address."""


class HostNetworks(Protocol):
    """The host's side of networks. See `nagaya.networks`."""

    default: str  # the network of machines that name none; "" for no NIC
    default_mode: NetworkMode  # of the network `default`

    @property
    def private(self) -> PrivateUplinks:
        """Ways out that are one NIC's alone."""

    def refusal(self, spec: NetworkSpec) -> str:
        """Why this host cannot have such a network, in words; "" if it can."""

    def ranges(self) -> Sequence[str]:
        """Ranges, of both families, to which the host has routes."""

    def macs(self) -> frozenset[str]:
        """MAC addresses of the host's interfaces and of its neighbours."""

    async def check_ports(self, forwards: Sequence[Forward]) -> None:
        """Raise `ConflictError` for a port of the host that another program has."""

    async def ensure(
        self, spec: NetworkSpec, reservations: Sequence[Reservation], forwards: Sequence[Forward]
    ) -> Uplink:
        """Have all of a network on the host as it is to be, whatever is there; returns its way out."""

    async def sweep(self, keep: Collection[str]) -> Sequence[str]:
        """Leave nothing on the host of networks that are not in `keep`; returns their names."""

    async def remove(self, name: str) -> None:
        """Leave nothing of a network on the host; it may not be there."""

    async def close(self) -> None:
        """Stop watching; the networks go on."""


class Agent(Protocol):
    """A guest agent's client, which connects when needed. See `nagaya.agent`."""

    async def ping(self, seconds: float) -> None:
        """Raise unless it answers within `seconds`."""

    async def shutdown(self) -> None:
        """Ask the guest to power off."""

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> tuple[int, bytes, bytes, bool]:
        """Exit code, stdout, stderr, and whether an output was cut."""

    async def freeze(self) -> int:
        """Flush and freeze the guest's file systems; how many. `thaw` must follow."""

    async def thaw(self) -> int:
        """Let the guest write again; how many file systems."""

    async def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base image in the store."""

    name: str
    digest: str
    path: Path
    size: int
    created_at: float
    os: str
    recipe: dict[str, Any] | None


class ImageStore(Protocol):
    """The image store."""

    def list(self) -> Sequence[BaseImage]:
        """All images, by name."""

    def resolve(self, name: str) -> BaseImage:
        """The image called `name`. Raises `NotFoundError`."""

    def blob(self, digest: str) -> Path:
        """Where the content with this digest is."""

    def remove(self, name: str, in_use: frozenset[str]) -> None:
        """Remove it. Raises `ConflictError` if its digest is in `in_use` and no other name has it."""

    def recipe(self, body: Mapping[str, Any]) -> Any:
        """Parse a recipe. Raises `SpecError`."""

    def is_current(self, name: str, recipe: Any) -> bool:
        """Whether `name` is there, built by `recipe`."""

    async def build(self, name: str, recipe: Any, progress: Progress) -> BaseImage:
        """Build it."""

    async def import_file(
        self, name: str, path: Path, image_format: Format | None, progress: Progress
    ) -> BaseImage:
        """Copy the disk in a file into the store; without a format its header tells."""


class KernelStore(Protocol):
    """The guest kernels."""

    def list(self) -> Sequence[KernelInfo]:
        """All kernels."""

    def choose(self, spec: MachineSpec) -> Kernel:
        """The one that `spec` boots. Raises `NotFoundError` or `UnavailableError`."""

    async def build(self, name: str, progress: Progress) -> KernelInfo:
        """Build our own of that name, "uml" or "kvm". Raises `UsageError` for another."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything below the daemon.

    `agent` is a client of a machine's guest agent, by the name (for messages) and the paths of the machine.
    `prepare` has the helper processes run, so that the first start is quick. `balance` gets the pids of the
    running machines by id, and evens out the load of the CPUs. `usage` is what a machine's control groups
    count: CPU time in microseconds, memory in bytes; None what nothing counts. `rank` gives all processes
    of a machine a score for the out-of-memory killer (`nagaya.oom`). `pressure` is what they tell
    of waits, `host_pressure` the same of the host, `group` the control groups themselves.
    """

    engine: Callable[[MachineSpec], Engine]
    plane: PlaneControl
    images: ImageStore
    kernels: KernelStore
    networks: HostNetworks
    agent: Callable[[str, MachinePaths], Agent]
    create_overlay: Callable[[str, int, str, str], None]  # path, size, backing path, backing format
    zygote_pid: Callable[[], int | None]
    prepare: Callable[[], Awaitable[None]]
    balance: Callable[[Mapping[str, int]], Awaitable[str]] | None = None
    usage: Callable[[str], tuple[int | None, int | None]] = lambda _machine: (None, None)
    rank: Callable[[str, int], None] = lambda _machine, _score: None
    pressure: Callable[[str], GroupPressure] = lambda _machine: GroupPressure()
    host_pressure: Callable[[], HostPressure] = HostPressure
    group: Callable[[str], Cgroup | None] = lambda _machine: None
