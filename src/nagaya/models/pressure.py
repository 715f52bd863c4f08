"""How long work stood still for want of CPU, memory or disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class PressureInfo(Answer):
    """Of one machine's run: microseconds and counts so far; null: this host does not tell (docs/memory.md).

    `cpu_wait_us` is time in which it could have run and none of it did, with `throttled_us`, in which its own
    limit held it.
    """

    cpu_wait_us: int | None = None
    throttled_us: int | None = None
    memory_stall_us: int | None = None
    disk_stall_us: int | None = None  # at the host's disks by itself: swap, page cache
    major_faults: int | None = None
    memory_limit_hits: int | None = None
    swap: int | None = None  # bytes


@dataclass(frozen=True, slots=True)
class StallInfo(Answer):
    """Time in which some work waited, and all of it; and the same as part of the last 10 s, 0 to 1."""

    some_us: int
    full_us: int
    some_avg10: float
    full_avg10: float


@dataclass(frozen=True, slots=True)
class AlarmInfo(Answer):
    """What is the matter with the host, in words, and what to do."""

    name: str  # "memory stalls"
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class HostPressureInfo(Answer):
    """Of the whole host; null: it does not tell."""

    cpu: StallInfo | None = None
    memory: StallInfo | None = None
    disk: StallInfo | None = None
    steal_us: int | None = None  # CPU time that its own host took
    swapped_in: int | None = None  # pages
    swapped_out: int | None = None
    major_faults: int | None = None
    memory_available: int | None = None  # bytes
    alarms: list[AlarmInfo] = field(default_factory=list)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        known: dict[str, Any] = {name: body[name] for name in cls.__dataclass_fields__ if name in body}
        for name in ("cpu", "memory", "disk"):
            if known.get(name) is not None:
                known[name] = StallInfo.from_json(known[name])
        known["alarms"] = [AlarmInfo.from_json(one) for one in known.get("alarms", [])]
        return cls(**known)
