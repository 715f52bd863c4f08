"""The devices that the plane serves, as its clients describe them (QMP `device_add`, docs/plane.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nagaya.plane.ports import PortRules
from nagaya.plane.shares import ShareNode

NO_RULES = PortRules()  # from its own MAC, with any address
ImageFormat = Literal["raw", "qcow2", "null", "simulated"]


@dataclass(frozen=True, slots=True)
class Speed:
    """From `after_ms` of a simulated device's life on, it works at `percent` of its speed."""

    after_ms: int
    percent: int


@dataclass(frozen=True, slots=True)
class Model:
    """How a disk without a file behaves, for tests and benches.

    Format `null` does nothing: a request ends at once, or after its time. Format `simulated` serves
    `parallel` requests at a time, the others wait; disks that name the same `device` share it. Its reads
    answer zeroes.
    """

    size: int  # bytes
    device: str = ""
    parallel: int = 0
    read_us: int = 0
    write_us: int = 0
    flush_us: int = 0
    bytes_per_second: int = 0  # what moving bytes adds; 0 for nothing
    varies_percent: int = 0  # of the time of each request, drawn from an exponential distribution
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One image file of a disk. Its format is always stated, never probed."""

    path: str
    format: ImageFormat
    model: Model | None = None  # with the formats null and simulated, whose path is ""


@dataclass(frozen=True, slots=True)
class BlkDevice:
    """A virtio-blk device. `layers[0]` is on top and the only one written."""

    id: str  # "<machine id>/disk0"
    socket: str  # vhost-user socket that the plane creates, 0600, owned by uid:gid
    uid: int
    gid: int
    layers: tuple[Layer, ...]
    read_only: bool = False
    shared: bool = False  # other machines write the top layer too, and all of them say so
    direct: bool = True
    queues: int = 1
    queue_size: int = 256
    serial: str = ""  # at most 20 bytes, virtio 1.3 5.2.6
    shares: tuple[ShareNode, ...] = ()  # its nodes in the arbiter's tree, from the top to its own
    driver: Literal["blk"] = "blk"


@dataclass(frozen=True, slots=True)
class ConsoleDevice:
    """A multiport virtio-console: port 0 is the console, port 1 the guest agent's.

    With a `serial_socket` the console is a serial port instead, and the agent's port is the only one.
    """

    id: str
    socket: str
    uid: int
    gid: int
    console_socket: str  # the plane listens here: raw console bytes, 0600
    agent_socket: str  # the plane listens here: raw agent bytes, 0600
    log: str  # scrollback file, 0600
    log_limit: int  # bytes
    serial_socket: str = ""  # the plane listens here for the machine, raw bytes, 0600, owned by uid:gid
    driver: Literal["console"] = "console"


@dataclass(frozen=True, slots=True)
class RngDevice:
    """A virtio-rng device fed from the host's getrandom()."""

    id: str
    socket: str
    uid: int
    gid: int
    driver: Literal["rng"] = "rng"


@dataclass(frozen=True, slots=True)
class BalloonDevice:
    """A virtio-balloon, empty at first. Its guest is asked for statistics every `stats_ms`; 0: never."""

    id: str  # "<machine id>/balloon0"
    socket: str
    uid: int
    gid: int
    stats_ms: int = 5000
    driver: Literal["balloon"] = "balloon"


@dataclass(frozen=True, slots=True)
class MemDevice:
    """A virtio-mem device: memory that a guest plugs and unplugs while it runs (virtio 1.3, 5.15).

    Its frontend shares the region's memory with that of the guest.
    """

    id: str  # "<machine id>/mem0"
    socket: str
    uid: int
    gid: int
    start: int  # guest-physical address of the region, a multiple of the block size
    size: int  # bytes of the region, likewise
    requested: int = 0  # bytes that the guest is to have plugged, likewise
    driver: Literal["mem"] = "mem"


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A virtio-net device: a port of `network`, whose ports share one worker."""

    id: str  # "<machine id>/net0"
    socket: str
    uid: int
    gid: int
    network: str
    mac: str  # "52:54:00:12:34:56"
    mtu: int = 1500
    queues: int = 1  # pairs
    queue_size: int = 256
    link: bool = True  # whether the cable is in
    rules: PortRules = NO_RULES
    shares: tuple[ShareNode, ...] = ()  # its nodes in the tree of networks, from the top to its own
    driver: Literal["net"] = "net"


@dataclass(frozen=True, slots=True)
class UplinkDevice:
    """The way out of `network`.

    `tap` and `macvtap`: the `interface` must exist, in the holder's network namespace. `stream`: somebody
    listens on the unix socket at `path` for frames, each after its length in 4 bytes, big-endian.
    """

    id: str  # "%<network>/uplink", or "%<port>"
    network: str
    kind: Literal["tap", "macvtap", "stream"]
    interface: str = ""
    path: str = ""
    port: str = ""  # the only port that it is the way out of; "" for all
    addresses: tuple[str, ...] = ()  # that such a way out answers for in ARP and neighbour discovery
    rate: int = 0  # bytes/s that machines can send through it, which weights share out; 0: not known
    driver: Literal["uplink"] = "uplink"


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Host work: what a disk of `layers` holds is copied to the disk of the layers `target`.

    No machine may have one of them open for writing. A raw target is made as large as the source. Its
    requests are those of `%copy/<id>` in the arbiter's tree.
    """

    id: str
    layers: tuple[Layer, ...]  # the top one first; none is written
    target: tuple[Layer, ...]  # files that exist, or a block device; only the first is written
    top_only: bool = False  # copy only what `layers[0]` itself has, not what it leaves to those below
    keep: bool = False  # what `target[0]` itself has stays: a disk that it is a layer of reads the same
    unlike: tuple[Layer, ...] = ()  # what reads the same in this disk is not copied
    direct: bool = True
    shares: tuple[ShareNode, ...] = ()  # `%copy` has weight 10 if nothing is said
    kind: Literal["copy"] = "copy"


Device = BlkDevice | ConsoleDevice | RngDevice | BalloonDevice | MemDevice | NetDevice | UplinkDevice
