"""What a user asks for: the frozen `MachineSpec` and its parts.

The same model serves YAML files, the REST API, the command line and the SDK. `nagaya.specfile` reads
files and reports errors with file and line; `json_schema()` feeds editors.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from nagaya.units import (
    format_rate,
    format_size,
    format_time,
    parse_iops,
    parse_rate,
    parse_size,
    parse_time,
)

EngineName = Literal["auto", "kvm", "uml", "qemu"]

MIB = 2**20
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"  # an RFC 1123 label: it becomes the guest's hostname

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    Field(json_schema_extra={"type": ["string", "integer"], "examples": ["512MiB", "1.5GiB"]}),
]
Rate = Annotated[
    int,
    BeforeValidator(parse_rate),
    PlainSerializer(format_rate, return_type=str, when_used="json"),
    Field(json_schema_extra={"type": ["string", "integer"], "examples": ["50MiB/s"]}),
]
Latency = Annotated[
    int,
    BeforeValidator(parse_time),
    Field(ge=1, le=60_000_000),
    PlainSerializer(format_time, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "time", "examples": ["5ms", "800us"]}),
]
Name = Annotated[
    str, Field(pattern=NAME_PATTERN, description="lower-case letters, digits and hyphens, 63 at most")
]
Weight = Annotated[
    int, Field(ge=1, le=10000, description="share of what is left, beside the others' weights")
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CpuKnobs(_Part):
    """CPU shares of a machine, in CPUs (1.5 is one and a half)."""

    reservation: float = Field(0, ge=0, le=4096, description="CPUs it gets whatever the others do")
    limit: float | None = Field(None, gt=0, le=4096, description="CPUs it never exceeds")
    weight: Weight = 100


class Memory(_Part):
    """Guest RAM and the host memory behind it. `memory: 512MiB` is short for `memory: {size: 512MiB}`."""

    size: Annotated[Size, Field(ge=16 * MIB, le=2**46, description="what the guest sees as its RAM")] = (
        512 * MIB
    )
    reservation: Size = Field(0, description="host memory it keeps whatever the others do")
    limit: Size | None = Field(None, description="host memory it never exceeds")
    weight: Weight = 100


class DiskKnobs(_Part):
    """Shares of the host's disks: requests a second and bytes a second; both hold.

    `reservation: 2000iops` is short for `reservation_iops: 2000`, and `limit` likewise.
    """

    reservation_iops: int = Field(
        0, ge=0, le=2**32 - 1, description="requests per second it gets whatever the others do"
    )
    reservation: Rate = Field(0, description="bytes per second it gets whatever the others do")
    limit_iops: int | None = Field(
        None, gt=0, le=2**32 - 1, description="requests per second it never exceeds"
    )
    limit: Rate | None = Field(None, gt=0, description="bytes per second it never exceeds")
    weight: Weight = 100
    latency_p99: Latency | None = Field(
        None,
        description="99 of 100 requests are answered in this time, at the others' cost",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_unit(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        fields: dict[str, object] = {}
        for key, given in value.items():
            iops = parse_iops(given) if key in ("reservation", "limit") else None
            name = key if iops is None else f"{key}_iops"
            if name in fields or (name != key and name in value):
                raise ValueError(f"{key} is given twice in iops")
            fields[name] = given if iops is None else iops
        return fields

    @model_validator(mode="after")
    def _ordered(self) -> DiskKnobs:
        if self.limit_iops is not None and self.reservation_iops > self.limit_iops:
            raise ValueError(f"reservation {self.reservation_iops}iops is above limit {self.limit_iops}iops")
        if self.limit is not None and self.reservation > self.limit:
            raise ValueError(
                f"reservation {format_rate(self.reservation)} is above limit {format_rate(self.limit)}"
            )
        return self


class NetworkKnobs(_Part):
    """Network shares of a machine, bytes per second."""

    reservation: Rate = Field(0, description="bytes per second it gets whatever the others do")
    limit: Rate | None = Field(None, description="bytes per second it never exceeds")
    weight: Weight = 100


class Tenant(_Part):
    """Machines that share together: those whose `tenant` is its name."""

    name: Name
    disk: DiskKnobs = Field(DiskKnobs(), description="what all its machines together get of the host's disks")

    def to_json(self) -> dict[str, object]:
        """JSON-ready, rates as text."""
        return self.model_dump(mode="json")


class Boot(_Part):
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


class Disk(_Part):
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

    def is_like(self, other: Disk) -> bool:
        """Whether it is the same disk with the same content: its share may differ."""
        return self == other.model_copy(update={"share": self.share})


class Nic(_Part):
    """A network interface."""

    network: Name = Field("default", description="name of the network that it is plugged into")
    mac: str = Field(
        "",
        pattern=r"^$|^([0-9a-f]{2}:){5}[0-9a-f]{2}$",
        description="six pairs of hex digits, 52:54:00:12:34:56; empty: derived",
    )


class Console(_Part):
    """The serial-like console and its log."""

    log_limit: Size = Field(
        2 * MIB, ge=64 * 1024, le=1024 * MIB, description="bytes of scrollback kept on disk"
    )


def _memory(value: object) -> object:
    return {"size": value} if isinstance(value, str | int) else value


class MachineSpec(_Part):
    """One machine. Field by field what `docs/reference/spec.md` explains."""

    name: Name
    engine: EngineName = Field("auto", description="what runs it; auto takes the first that fits")
    cpus: int = Field(1, ge=1, le=1024, description="CPUs that the guest sees")
    memory: Annotated[Memory, BeforeValidator(_memory)] = Field(Memory(), description="RAM of the guest")
    boot: Boot = Field(Boot(), description="how it starts")
    disks: tuple[Disk, ...] = Field((), max_length=16, description="the first one holds the root file system")
    nics: tuple[Nic, ...] = Field((), max_length=8, description="network interfaces")
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
    def _triples_are_ordered(self) -> MachineSpec:
        for field, knobs in (("cpu", self.cpu), ("memory", self.memory), ("network", self.network)):
            if knobs.limit is not None and knobs.reservation > knobs.limit:
                raise ValueError(f"{field}: reservation {knobs.reservation} is above limit {knobs.limit}")
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
