"""The host, the daemon, and what it says when it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from nagaya.models.answer import Answer
from nagaya.models.pressure import HostPressureInfo


@dataclass(frozen=True, slots=True)
class HostInfo(Answer):
    """The host and the processes of this Nagaya."""

    version: str
    hostname: str
    daemon_pid: int
    daemon_started_at: float
    adopted_in: float  # seconds from the daemon's exec until it knew all machines again
    plane_pid: int | None
    zygote_pid: int | None
    machines: int
    machines_running: int
    run: str
    state: str
    cache: str


@dataclass(frozen=True, slots=True)
class ResourceReport(Answer):
    """One resource of the host. Amounts are in `unit`; None: nobody knows (a disk that was not measured)."""

    resource: Literal["cpu", "memory", "disk", "network"]
    name: str  # which disk or network; "" for what there is one of
    unit: Literal["CPUs", "bytes", "iops", "bytes/s"]
    total: float | None
    kept: float  # what stays with the host
    promised: float
    visible: float  # what the guests that run can see of it together; 0 for disks and networks
    used: float | None  # now, by all of the host
    left: float | None  # what can still be promised
    overcommit: str  # none, fair, or a ratio


@dataclass(frozen=True, slots=True)
class NodeReport(Answer):
    """A NUMA node."""

    id: int
    cpus: list[int]
    memory: int  # bytes
    free: int


@dataclass(frozen=True, slots=True)
class StartWait(Answer):
    """A machine's place in the queue of those that wait for room on the host."""

    machine: str
    machine_id: str
    state: Literal["waiting", "started", "ended"]
    position: int  # 1 is next; 0 once it does not wait any more
    since: float
    deadline: float | None
    reason: str  # what is missing, or how its waiting ended, in words


@dataclass(frozen=True, slots=True)
class HostReport(Answer):
    """What the host has, what of it is promised, used and left, and what work waits for."""

    hostname: str
    resources: list[ResourceReport]
    nodes: list[NodeReport]
    waiting: list[StartWait]
    policy: dict[str, Any]  # as `nagaya host set` sets it
    machines: int
    machines_running: int
    pressure: HostPressureInfo = field(default_factory=HostPressureInfo)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        parts: dict[str, type[Answer]] = {
            "resources": ResourceReport,
            "nodes": NodeReport,
            "waiting": StartWait,
        }
        built = {key: [kind.from_json(row) for row in body[key]] for key, kind in parts.items()}
        pressure = HostPressureInfo.from_json(body["pressure"])
        return super(HostReport, cls).from_json({**body, **built, "pressure": pressure})


@dataclass(frozen=True, slots=True)
class VersionInfo(Answer):
    """What answers on this socket."""

    version: str
    api: str = "v1"


@dataclass(frozen=True, slots=True)
class ErrorBody(Answer):
    """Every answer above 399: `nagaya.errors.NagayaError.to_json`."""

    code: str
    message: str
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
