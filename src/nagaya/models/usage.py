"""What machines use of the host, at one moment. Rates are the difference of two of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from nagaya.models.answer import Answer
from nagaya.models.pressure import HostPressureInfo, PressureInfo
from nagaya.models.waits import WaitInfo


@dataclass(frozen=True, slots=True)
class DiskUsage(Answer):
    """One disk of a machine: counters since it was plugged in, and what is the case now.

    `p99_us` is the time from a request's arrival to its answer that 99 of 100 stay below; 0 while unknown.
    """

    name: str  # "disk0"
    reads: int
    writes: int
    flushes: int
    discards: int
    read_bytes: int
    written_bytes: int
    errors: int
    in_flight: int
    waiting: int
    p99_us: int


@dataclass(frozen=True, slots=True)
class NicUsage(Answer):
    """One NIC of a machine that runs: counters of this run as the guest sees them, Ethernet bytes.

    `drops` counts frames by reason, those that it sent and those that were for it; `waiting` frames are held
    for a limit or their share.
    """

    name: str  # "net0"
    network: str
    link: bool
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    drops: dict[str, int]
    waiting: int


@dataclass(frozen=True, slots=True)
class UplinkUsage(Answer):
    """The way out of a network: counters since it came up, as the network sees them."""

    network: str
    rate: int  # what it carries, bytes per second; 0: not known
    rx_packets: int  # from the world
    rx_bytes: int
    tx_packets: int  # to the world
    tx_bytes: int
    drops: dict[str, int]
    waiting: int  # frames of machines that wait for their share of it


@dataclass(frozen=True, slots=True)
class BalloonUsage(Answer):
    """The balloon of a machine that runs, in bytes. What the guest says is a claim; null: it says nothing."""

    size: int  # what it was asked to give
    actual: int  # what it says it has given
    reported: int  # free memory that the host has taken since the machine's start
    available: int | None  # of its memory, as it says, without swapping


@dataclass(frozen=True, slots=True)
class MachineUsage(Answer):
    """One machine. `cpu_us`: CPU time since its start; `memory`: what the host has for it; null: unknown."""

    id: str
    name: str
    state: str
    weight: int  # disk.weight
    cpu_us: int | None
    memory: int | None
    memory_size: int
    objective: Literal["none", "met", "missed"]  # disk.latency_p99
    disks: list[DiskUsage]
    nics: list[NicUsage] = field(default_factory=list)
    pressure: PressureInfo = field(default_factory=PressureInfo)
    balloon: BalloonUsage | None = None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        known = {name: body[name] for name in cls.__dataclass_fields__}
        known["disks"] = [DiskUsage.from_json(disk) for disk in body["disks"]]
        known["nics"] = [NicUsage.from_json(nic) for nic in body["nics"]]
        known["pressure"] = PressureInfo.from_json(body["pressure"])
        balloon = body["balloon"]
        known["balloon"] = None if balloon is None else BalloonUsage.from_json(balloon)
        return cls(**known)


@dataclass(frozen=True, slots=True)
class ArbiterUsage(Answer):
    """The arbiter of one physical disk, or of one network, whose requests are frames.

    Capacities of disks are measured, that of a network is its uplink's rate; 0 while unknown.
    """

    worker: str
    window: int  # requests that it allows in flight
    target_us: int  # the latency by which it judges the disk
    in_flight: int
    waiting: int
    capacity_iops: int
    capacity: int  # bytes/s
    resource: Literal["disk", "network"] = "disk"


@dataclass(frozen=True, slots=True)
class UsageAnswer(Answer):
    """All machines at `at`, when the disks were counted: seconds of a clock that only runs forward.

    `waits` are of the last `since` s.
    """

    at: float
    since: int
    machines: list[MachineUsage]
    arbiters: list[ArbiterUsage]
    waits: list[WaitInfo]
    uplinks: list[UplinkUsage] = field(default_factory=list)
    host: HostPressureInfo = field(default_factory=HostPressureInfo)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        return cls(
            float(body["at"]),
            int(body["since"]),
            [MachineUsage.from_json(one) for one in body["machines"]],
            [ArbiterUsage.from_json(one) for one in body["arbiters"]],
            [WaitInfo.from_json(one) for one in body["waits"]],
            [UplinkUsage.from_json(one) for one in body["uplinks"]],
            HostPressureInfo.from_json(body["host"]),
        )
