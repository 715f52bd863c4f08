"""The host, the daemon, and what it says when it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nagaya.models.answer import Answer


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
