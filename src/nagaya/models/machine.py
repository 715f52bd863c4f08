"""Machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nagaya.models.answer import Answer


class MachineState(StrEnum):
    """Where a machine is in its life (docs/api.md, "Life of a machine")."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    IO_ERROR = "io-error"  # it runs, and a disk of it waits for the host or has lost writes
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True)
class MachineInfo(Answer):
    """A machine: what was asked for (`spec`) and what is."""

    id: str
    name: str
    state: MachineState
    cause: str  # why it is stopped or failed, or what it waits for; "" while all is well
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
    faults: Sequence[dict[str, Any]] = ()  # those laid upon its disks and NICs on purpose
    nics: Sequence[dict[str, Any]] = ()  # what `nagaya.models.network.NicInfo` has

    @property
    def address(self) -> str:
        """By which the host and its neighbours reach it: of its first NIC that has one; "" if none has."""
        return next((nic["ipv4"] or nic["ipv6"] for nic in self.nics if nic["ipv4"] or nic["ipv6"]), "")
