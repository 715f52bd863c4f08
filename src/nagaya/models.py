"""What the API answers, as plain dataclasses: the daemon writes them, the SDK reads them.

They import nothing but the standard library, so that a client starts quickly. Times are seconds since
1970 (UTC), sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Self


class MachineState(StrEnum):
    """Where a machine is in its life (docs/api.md, "Life of a machine")."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"
    DELETING = "deleting"


class OperationState(StrEnum):
    """Where a long job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Answer:
    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer; keys that a newer daemon added are left out."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]  # every subclass is a dataclass
        return cls(**{key: value for key, value in body.items() if key in known})


@dataclass(frozen=True, slots=True)
class MachineInfo(_Answer):
    """A machine: what was asked for (`spec`) and what is."""

    id: str
    name: str
    state: MachineState
    cause: str  # why it is stopped or failed, in words; "" while all is well
    engine: str
    kernel: str
    cpus: int
    memory: int
    uid: int
    pid: int | None
    restarts: int
    created_at: float
    changed_at: float
    started_at: float | None
    console_socket: str
    spec: dict[str, Any]
    source: str = ""  # what `apply` made it from; "" if it was made by hand


@dataclass(frozen=True, slots=True)
class JournalEntry(_Answer):
    """One line of a machine's history."""

    seq: int
    at: float
    event: str
    detail: str


@dataclass(frozen=True, slots=True)
class ImageInfo(_Answer):
    """A base image in the store. `used_by` names the machines with a disk on it."""

    name: str
    digest: str
    size: int
    created_at: float
    os: str
    recipe: dict[str, Any] | None
    used_by: list[str]


@dataclass(frozen=True, slots=True)
class KernelInfo(_Answer):
    """A guest kernel in the store."""

    name: str
    path: str
    origin: str
    builtin_virtio: bool
    default: bool


@dataclass(frozen=True, slots=True)
class OperationInfo(_Answer):
    """A long job. `fraction` is 0 to 1, or null where nobody can say; `revision` grows with every change."""

    id: str
    kind: str
    target: str
    state: OperationState
    step: str
    fraction: float | None
    revision: int
    created_at: float
    ended_at: float | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ExecAnswer(_Answer):
    """How a guest command ended; outputs are base64. `truncated`: the agent cut an output at its limit."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class HostInfo(_Answer):
    """The host and the processes of this Nagaya."""

    version: str
    hostname: str
    daemon_pid: int
    daemon_started_at: float
    adopted_in: float  # seconds from the daemon's exec until it knew all machines again
    plane_pid: int | None
    zygote_pid: int | None
    cpus: int
    memory: int
    memory_available: int
    memory_promised: int  # to machines that are not stopped
    memory_limit: int  # what admission gives away at most
    machines: int
    machines_running: int
    run: str
    state: str
    cache: str


@dataclass(frozen=True, slots=True)
class VersionInfo(_Answer):
    """What answers on this socket."""

    version: str
    api: str = "v1"


@dataclass(frozen=True, slots=True)
class ErrorBody(_Answer):
    """Every answer above 399: `nagaya.errors.NagayaError.to_json`."""

    code: str
    message: str
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
