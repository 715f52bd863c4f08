"""Leases: who may use which image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nagaya.models.answer import Answer

LeaseState = Literal["held", "reserved", "closed", "remote", "expired"]
WaitState = Literal["waiting", "granted", "ended"]


@dataclass(frozen=True, slots=True)
class LeaseInfo(Answer):
    """A right to use an image, and who has it (docs/leases.md)."""

    id: str
    resource: str  # what people call it: "web/disk0", "image debian", "/srv/data.img"
    path: str
    inode: str  # device and inode number: the same for all names of the image
    access: str  # "writer", "reader" or "shared"
    state: LeaseState
    machine: str  # the holder: a machine's name, or what a job does
    machine_id: str
    disk: str  # of the machine: "disk0"
    host: str
    host_id: str
    boot_id: str
    pid: int  # the process that has the image open and locked; 0 while none has
    start_time: int
    since: float
    expires_at: float | None
    waiting: list[str] = field(default_factory=list)  # machines that wait for this image, the next one first


@dataclass(frozen=True, slots=True)
class LeaseWait(Answer):
    """A machine's place in the queue for its images."""

    machine: str
    machine_id: str
    state: WaitState
    position: int  # 1 is next; 0 once it does not wait any more
    since: float
    deadline: float | None
    reason: str  # what it waits for, in words
    expires_at: float | None = None  # until when the granted leases are kept for it; None: it runs


@dataclass(frozen=True, slots=True)
class BreakInfo(Answer):
    """What a break did."""

    lease: LeaseInfo
    fenced: str  # what was done to the holder before, in words; "" if it had ended
    warning: str = ""
