"""Warnings before it hurts: the host stalls, or nearly all of it is promised.

An alarm is raised above its high mark and ends below its low one, so that it does not flicker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nagaya.resources.admission import Pool
from nagaya.resources.pressure import HostPressure, Stall

Name = Literal[
    "memory stalls",
    "cpu waits",
    "disk stalls",
    "cpu stolen",
    "memory short",
    "memory promised",
    "cpu promised",
]


@dataclass(frozen=True, slots=True)
class Mark:
    """Parts of one: the alarm begins at `high` and ends below `low`."""

    high: float
    low: float


# A stall of a tenth means that work takes a tenth longer for want of memory: swap or page cache thrash. Waits
# for a CPU are usual on a busy host and hurt once most of the time somebody waits.
MARKS: Mapping[Name, Mark] = {
    "memory stalls": Mark(0.10, 0.05),
    "cpu waits": Mark(0.60, 0.40),
    "disk stalls": Mark(0.50, 0.30),
    "cpu stolen": Mark(0.10, 0.05),
    "memory short": Mark(0.95, 0.93),
    "memory promised": Mark(0.90, 0.85),
    "cpu promised": Mark(0.90, 0.85),
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is the matter with the host, in words, and what to do."""

    name: Name
    text: str
    hint: str


@dataclass(frozen=True, slots=True)
class HostLook:
    """What alarms are judged by: the host's pressure, and what of its pools is promised.

    `stolen`: part of the host's CPU time that its own host took lately, 0 to 1.
    """

    pressure: HostPressure
    stolen: float
    promised: Sequence[tuple[Pool, float]]


class Alarms:
    """Those that are raised now."""

    def __init__(self) -> None:
        self._raised: dict[Name, Alarm] = {}

    @property
    def raised(self) -> Sequence[Alarm]:
        """In the order of `MARKS`."""
        return [self._raised[name] for name in MARKS if name in self._raised]

    def judge(self, look: HostLook) -> list[tuple[Name, bool]]:
        """Take in how the host is now; returns what was raised (True) and what ended (False)."""
        changed: list[tuple[Name, bool]] = []
        for name, level, text, hint in _levels(look):
            was = name in self._raised
            if level >= (MARKS[name].low if was else MARKS[name].high):
                self._raised[name] = Alarm(name, text, hint)
                changed += [] if was else [(name, True)]
            elif was:
                del self._raised[name]
                changed.append((name, False))
        return changed


def _levels(look: HostLook) -> Iterator[tuple[Name, float, str, str]]:
    host = look.pressure
    stalls = _some(host.memory)
    yield (
        "memory stalls",
        stalls,
        f"some work waited for memory {stalls:.0%} of the last 10 s",
        "nagaya memory show; stop a machine, or lower a memory.limit",
    )
    waits = _some(host.cpu)
    yield (
        "cpu waits",
        waits,
        f"some work waited for a CPU {waits:.0%} of the last 10 s",
        "nagaya top --sort cpuwait shows who; cpu.weight and cpu.limit divide the CPUs",
    )
    disks = host.io.full_avg10 if host.io else 0.0
    yield (
        "disk stalls",
        disks,
        f"all work that could run waited for the host's disks {disks:.0%} of the last 10 s",
        "nagaya top --sort waited shows who",
    )
    yield (
        "cpu stolen",
        look.stolen,
        f"this host is itself a guest, and did not get {look.stolen:.0%} of its CPU time",
        "ask those who run its host",
    )
    yield from _sizes(look)


def _sizes(look: HostLook) -> Iterator[tuple[Name, float, str, str]]:
    available = look.pressure.memory_available
    for pool, promised in look.promised:
        if pool.resource == "memory" and available is not None and pool.total:
            yield (
                "memory short",
                1 - available / pool.total,
                f"{pool.text(available)} of the host's {pool.text(pool.total)} are available",
                "nagaya top --sort memory shows who has it",
            )
        part = promised / pool.limit if pool.limit else 0.0
        yield (
            "cpu promised" if pool.resource == "cpu" else "memory promised",
            part,
            f"{pool.text(promised)} of {pool.text(pool.limit)} are promised ({part:.0%})",
            "one more machine may be refused: nagaya host",
        )


def _some(stall: Stall | None) -> float:
    return stall.some_avg10 if stall else 0.0
