"""What a user asks for: the frozen `MachineSpec` and its parts.

The same model serves YAML files, the REST API, the command line and the SDK. `nagaya.specfile` reads
files and reports errors with file and line; `json_schema()` feeds editors.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from nagaya.knobs import CpuKnobs, DiskKnobs, Memory, NetworkKnobs, Part, Rate, Size
from nagaya.traffic import MAC_PATTERN, PortForward, parse_address, parse_forward, parse_rule, parse_subnet
from nagaya.units import format_rate

EngineName = Literal["auto", "kvm", "uml", "qemu"]
CpuModel = Literal["host", "x86-64-v1", "x86-64-v2", "x86-64-v3", "baseline"]  # nagaya.kvm.models

MIB = 2**20
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # an RFC 1123 label: it becomes the guest's hostname

Name = Annotated[
    str, Field(pattern=NAME_PATTERN, description="lower-case letters, digits and hyphens, 63 at most")
]


class Tenant(Part):
    """Machines that share together: those whose `tenant` is its name."""

    name: Name
    disk: DiskKnobs = Field(DiskKnobs(), description="what all its machines together get of the host's disks")
    network: NetworkKnobs = Field(NetworkKnobs(), description="the same of each network")

    def to_json(self) -> dict[str, object]:
        """JSON-ready, rates as text."""
        return self.model_dump(mode="json")


class Boot(Part):
    """How the guest starts. Empty fields are the engine's and the image's defaults."""

    kernel: str = Field(
        "", description="a name from `nagaya kernel list`, or an absolute path; empty: the engine's default"
    )
    initrd: str = Field(
        "", description="absolute path of an initial RAM disk; empty: none, or what the kernel needs"
    )
    cmdline: str = Field("", max_length=1024, description="appended to the kernel's command line")

    @model_validator(mode="after")
    def _printable(self) -> Boot:
        if not self.cmdline.isprintable():
            raise ValueError("cmdline holds a control character; write it on one line")
        return self


class Disk(Part):
    """A virtual disk: an overlay of an image, an empty one of `size`, a disk by its name, or a raw file."""

    image: str = Field("", description="a name from `nagaya image list`; the disk is a thin overlay of it")
    path: str = Field(
        "", description="absolute path of a raw image or a block device used directly, instead of `image`"
    )
    disk: str = Field(
        "",
        pattern=r"^$|" + NAME_PATTERN,
        description="a name from `nagaya disk list`: a disk that outlives the machine",
    )
    size: Size | None = Field(None, description="at least the image's size; the overlay is grown to it")
    read_only: bool = Field(False, description="the guest cannot write")
    shared: bool = Field(
        False, description="other machines write this `path` too, on purpose: their file systems can share"
    )
    direct: bool = Field(True, description="bypass the host's page cache (O_DIRECT)")
    share: DiskKnobs = Field(DiskKnobs(), description="this disk's share of what the machine gets")

    @model_validator(mode="after")
    def _one_source(self) -> Disk:
        if sum(map(bool, (self.image, self.path, self.disk))) > 1:
            raise ValueError("a disk has one of `image`, `path` and `disk`")
        if self.path and not self.path.startswith("/"):
            raise ValueError(f"path {self.path!r} is not absolute")
        if not self.image and not self.path and not self.disk and self.size is None:
            raise ValueError("a disk needs `image`, `disk`, `path`, or `size` for an empty one")
        if self.disk and self.size is not None:
            raise ValueError("a disk with a name has its own size: nagaya disk resize")
        if self.shared and not self.path:
            raise ValueError("only a disk with `path` can be `shared`, an overlay is its machine's own")
        if self.size is not None and (self.size % 512 or self.size < MIB):
            raise ValueError(f"size {self.size} must be at least 1MiB and a multiple of 512 bytes")
        return self


class Nic(Part):
    """A network interface. What is left empty is chosen when the machine is made, and stays."""

    network: Name = Field("default", description="name of the network that it is plugged into")
    mac: str = Field(
        "",
        pattern=f"^$|{MAC_PATTERN}",
        description="six pairs of hex digits, 52:54:00:12:34:56, the first one even; empty: derived",
    )
    ipv4: Annotated[str, AfterValidator(lambda text: parse_address(text, 4))] = Field(
        "", description="the address that it wants of its network; empty: any"
    )
    ipv6: Annotated[str, AfterValidator(lambda text: parse_address(text, 6))] = Field(
        "", description="the same for IPv6"
    )
    groups: tuple[Name, ...] = Field(
        (), max_length=16, description="security groups; none: everything is allowed that is its own"
    )
    isolated: bool = Field(False, description="it reaches the world, and no other machine of the network")
    spoof: bool = Field(False, description="it may send from any MAC and any address")
    vlan: int | None = Field(None, ge=1, le=4094, description="VLAN that it is in, which it does not see")
    queues: int = Field(1, ge=1, le=16, description="pairs of queues, for guests with several CPUs")
    share: NetworkKnobs = Field(NetworkKnobs(), description="its share of what the machine gets")


NetworkMode = Literal["nat", "routed", "bridge", "isolated", "macvtap", "user"]
_ADDRESSED = ("nat", "routed", "isolated", "user")  # modes in which we choose the machines' addresses


class NetworkSpec(Part):
    """A network that machines are plugged into, and its way to the world (docs/networks.md)."""

    name: Name
    mode: NetworkMode = Field(
        "nat",
        description="nat: behind the host's address; routed: the world knows a route to it; bridge, macvtap: "
        "part of the host's own network; isolated: machines only; user: through passt, without privileges",
    )
    ipv4: Annotated[str | None, AfterValidator(lambda text: parse_subnet(text, 4))] = Field(
        "auto", description="its range, 10.77.0.0/24; auto: one that the host does not use; null: none"
    )
    ipv6: Annotated[str | None, AfterValidator(lambda text: parse_subnet(text, 6))] = Field(
        "auto", description="its prefix, fd12:3456:789a::/64; auto: one of its own; null: none"
    )
    dhcp: bool = Field(True, description="machines are told their addresses")
    dns: bool = Field(True, description="machines find one another by name")
    domain: str = Field(
        "nagaya.internal",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,7}$",
        max_length=180,
        description="labels of lower-case letters, digits and hyphens, with dots between them",
    )
    uplink: str = Field(
        "",
        pattern=r"^$|^[^/\s:\"*\\]{1,15}$",
        description="interface or bridge of the host, 15 characters at most; empty: as its default route",
    )
    mtu: int = Field(1500, ge=576, le=65521, description="bytes of a packet")
    vlan: int | None = Field(None, ge=1, le=4094, description="VLAN of the bridge that `uplink` is")
    rate: Rate | None = Field(
        None, gt=0, description="what the uplink carries, bytes per second, if it is known"
    )

    @model_validator(mode="after")
    def _mode_fits(self) -> NetworkSpec:
        if self.mode in ("bridge", "macvtap"):
            if not self.uplink:
                raise ValueError(f"mode {self.mode} needs `uplink`, an interface of the host")
            for field in ("ipv4", "ipv6"):
                if getattr(self, field) not in (None, "auto"):
                    raise ValueError(
                        f"{field}: with mode {self.mode} addresses come from the uplink's network"
                    )
        elif self.mode in ("isolated", "user") and self.uplink:
            raise ValueError(f"mode {self.mode} has no `uplink`")
        if self.vlan is not None and self.mode != "bridge":
            raise ValueError(f"mode {self.mode} has no `vlan`: one is of a bridge, and of its mode")
        if self.mode in _ADDRESSED and self.ipv4 is None and self.ipv6 is None:
            raise ValueError(f"mode {self.mode} needs `ipv4` or `ipv6`")
        return self

    @property
    def addressed(self) -> bool:
        """Whether we choose the machines' addresses, not somebody on the uplink's network."""
        return self.mode in _ADDRESSED

    @property
    def gateway4(self) -> str:
        """The host's address in it, the range's first; "" without IPv4. Once `auto` is resolved."""
        return str(ipaddress.IPv4Network(self.ipv4)[1]) if self.ipv4 else ""

    @property
    def gateway6(self) -> str:
        """The same for IPv6."""
        return str(ipaddress.IPv6Network(self.ipv6)[1]) if self.ipv6 else ""

    def to_json(self) -> dict[str, object]:
        """JSON-ready, rates as text."""
        return self.model_dump(mode="json")


_Rules = Annotated[
    tuple[Annotated[str, AfterValidator(lambda text: str(parse_rule(text)))], ...], Field(max_length=64)
]


class SecurityGroup(Part):
    """What NICs of a group may be asked for, and may ask for. What no rule allows is refused; answers pass.

    A rule is `PROTOCOL[:PORT[-PORT]][@PEER]`: `tcp:80`, `udp:53@10.0.0.0/8`, `tcp:5432@group:web`, `any`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: Name
    inbound: _Rules = Field((), alias="in", description="connections that others may open to it")
    outbound: _Rules = Field(("any",), alias="out", description="connections that it may open")

    def to_json(self) -> dict[str, object]:
        """JSON-ready, by the names that files use."""
        return self.model_dump(mode="json", by_alias=True)


class Console(Part):
    """The serial-like console and its log."""

    log_limit: Size = Field(
        2 * MIB, ge=64 * 1024, le=1024 * MIB, description="bytes of scrollback kept on disk"
    )


def _memory(value: object) -> object:
    return {"size": value} if isinstance(value, str | int) else value


class MachineSpec(Part):
    """One machine. Field by field what `docs/reference/spec.md` explains."""

    name: Name
    engine: EngineName = Field("auto", description="what runs it; auto takes the first that fits")
    cpus: int = Field(1, ge=1, le=1024, description="CPUs that the guest sees")
    cpu_model: CpuModel = Field(
        "host", description="what they can do: all that the host's can, or no more than a named model"
    )
    memory: Annotated[Memory, BeforeValidator(_memory)] = Field(Memory(), description="RAM of the guest")
    boot: Boot = Field(Boot(), description="how it starts")
    disks: tuple[Disk, ...] = Field((), max_length=16, description="the first one holds the root file system")
    nics: tuple[Nic, ...] | None = Field(
        None, max_length=8, description="network interfaces; left out: one on the network `default`; []: none"
    )
    ports: tuple[Annotated[str, AfterValidator(lambda text: str(parse_forward(text)))], ...] = Field(
        (),
        max_length=64,
        description="ports of the host that lead to it, `[ADDRESS:]PORT:PORT[/udp]`, as `127.0.0.1:8080:80`",
    )
    console: Console = Field(Console(), description="the console and its log")
    cpu: CpuKnobs = Field(CpuKnobs(), description="its share of the host's CPUs")
    disk: DiskKnobs = Field(DiskKnobs(), description="its share of the host's disks")
    network: NetworkKnobs = Field(NetworkKnobs(), description="its share of the host's networks")
    tenant: str = Field(
        "",
        pattern=f"^$|{NAME_PATTERN}",
        description="name of the tenant whose share it is part of; empty: none",
    )
    autostart: bool = Field(False, description="start with the daemon after a reboot of the host")
    restart: Literal["never", "on-failure", "always"] = Field(
        "never", description="what to do when it ends by itself"
    )

    @model_validator(mode="after")
    def _cpus_suffice(self) -> MachineSpec:
        if self.cpu.reservation > self.cpus:
            raise ValueError(f"cpu: reservation {self.cpu.reservation:g} is more than its cpus, {self.cpus}")
        return self

    @model_validator(mode="after")
    def _ports_are_reached(self) -> MachineSpec:
        if self.ports and self.nics == ():
            raise ValueError("ports: it has no NIC that they could lead to")
        taken: dict[tuple[str, int], PortForward] = {}
        for forward in map(parse_forward, self.ports):
            other = taken.setdefault((forward.protocol, forward.host_port), forward)
            if other is not forward and forward.clashes(other):
                raise ValueError(f"ports: {other} and {forward} are the same port of the host")
        macs = [nic.mac for nic in self.nics or () if nic.mac]
        if len(set(macs)) < len(macs):
            raise ValueError("nics: two have the same mac")
        return self

    @model_validator(mode="after")
    def _disks_fit(self) -> MachineSpec:
        iops = sum(disk.share.reservation_iops for disk in self.disks)
        rate = sum(disk.share.reservation for disk in self.disks)
        if self.disk.limit_iops is not None and iops > self.disk.limit_iops:
            raise ValueError(f"disks: they reserve {iops}iops, above disk.limit {self.disk.limit_iops}iops")
        if self.disk.limit is not None and rate > self.disk.limit:
            raise ValueError(
                f"disks: they reserve {format_rate(rate)}, above disk.limit {format_rate(self.disk.limit)}"
            )
        return self

    @model_validator(mode="after")
    def _nics_fit(self) -> MachineSpec:
        reserved: dict[str, int] = {}
        for nic in self.nics or ():
            reserved[nic.network] = reserved.get(nic.network, 0) + nic.share.reservation
            rate, limit = reserved[nic.network], self.network.limit
            if limit is not None and rate > limit:
                raise ValueError(
                    f"nics: on {nic.network} they reserve {format_rate(rate)}, "
                    f"above network.limit {format_rate(limit)}"
                )
        return self

    def to_json(self) -> dict[str, object]:
        """JSON-ready, sizes as text, by the names that files use."""
        return self.model_dump(mode="json")


def check_name(name: str) -> str:
    """`name` if it can name a machine. Raises `ValueError` that says what is allowed."""
    if not re.match(NAME_PATTERN, name):
        raise ValueError(
            f"{name!r} cannot name a machine: use lower-case letters, digits and hyphens, 63 at most"
        )
    return name
