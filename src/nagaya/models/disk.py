"""Disks: those of machines, and those with a name of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class DiskInfo(Answer):
    """A disk. `name` is "data", or "db/disk0" for the first disk of the machine db."""

    name: str
    format: str  # "qcow2" for layers of ours, "raw" for a file or an image used as it is
    size: int  # bytes that a guest sees
    allocated: int  # bytes that its own layers take on the host
    layers: int  # its own, without the base image
    image: str  # name, or digest, of the base image; "" for none
    snapshots: list[dict[str, Any]]  # {"name", "created_at", "consistency", "size"}, oldest first
    used_by: list[str]  # machines
    state: str  # "free", "in use" by a machine that runs, or what works on it
    path: str  # of the top layer
    created_at: float
