"""What `nagaya plan` answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class PlanRoom(Answer):
    """One resource: what there is, what is used at its busiest hour, and what one machine more adds then.

    `fits` machines more have place; null: it does not bound them.
    """

    resource: str
    name: str  # of a disk or a network
    unit: str
    limit: float | None  # null: nobody knows
    used: float
    each: float
    hour: int  # of the day, UTC
    fits: int | None


@dataclass(frozen=True, slots=True)
class PlanRow(Answer):
    """So many machines more, at the busiest hour: what disks would get. Latencies are those of the plane."""

    disk: str  # of the host
    more: int
    iops: float  # of all machines
    p99_us: float  # of the machine, or of its copies if they are slower; 0: too few requests
    worst: str  # the disk that is closest to what it may take, or furthest beyond
    worst_p99_us: float
    worst_bound_us: float
    guessed: bool  # at more than 1% of requests more was at the disk than when it was measured


@dataclass(frozen=True, slots=True)
class PlanAnswer(Answer):
    """How many machines more like `like` fit, and why not one more."""

    like: str
    fits: int
    breaks: str  # the resource that breaks first; "" if none does within `most`
    most: int
    rooms: list[PlanRoom]
    rows: list[PlanRow]
    words: list[str]
    limits: list[str]  # what this does not know

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        rooms = [PlanRoom.from_json(one) for one in body["rooms"]]
        rows = [PlanRow.from_json(one) for one in body["rows"]]
        return super(PlanAnswer, cls).from_json({**body, "rooms": rooms, "rows": rows})


@dataclass(frozen=True, slots=True)
class PlanGroup(Answer):
    """Machines that could share one host: by resource the most that they ask for at a time, and when."""

    machines: list[str]
    peaks: dict[str, float]
    hours: dict[str, int]


@dataclass(frozen=True, slots=True)
class ConsolidationAnswer(Answer):
    """On how many hosts like this one all recorded machines would fit."""

    groups: list[PlanGroup]
    too_large: list[str]  # for any host like this one
    unknown: list[str]  # machines of which nothing has been recorded
    rooms: dict[str, float]  # what one host has
    words: list[str]
    limits: list[str]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        groups = [PlanGroup.from_json(one) for one in body["groups"]]
        return super(ConsolidationAnswer, cls).from_json({**body, "groups": groups})
