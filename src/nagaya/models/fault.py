"""Faults on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class DiskFaults(Answer):
    """What the requests of a disk are made to suffer; the fields are those of `FaultsBody` in the API.

    `faulted` counts the requests that a fault has met since the disk was attached.
    """

    disk: int
    latency_us: int = 0
    jitter_us: int = 0
    error_rate: float = 0.0
    error: str = "EIO"
    torn_write_rate: float = 0.0
    stuck: bool = False
    full: bool = False
    operations: Sequence[str] = ()  # read, write, flush, discard; none are all
    seed: int = 0
    faulted: int = 0


@dataclass(frozen=True, slots=True)
class NicFaults(Answer):
    """What the frames of a NIC are made to suffer, both ways: the fields of `NicFaultsBody` in the API.

    `dropped` counts the frames that faults have cost since the machine started.
    """

    nic: str  # "net0"
    loss: float = 0.0
    delay_us: int = 0
    jitter_us: int = 0
    duplicate: float = 0.0
    reorder: float = 0.0
    partition: bool | Sequence[str] = False  # from all, or from NICs ("db/net0") and the "uplink"
    seed: int = 0
    dropped: int = 0
