"""Who waited for whom at disks, networks, CPUs and for memory, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from nagaya.models.answer import Answer

WaitResource = Literal["disk", "network", "cpu", "memory"]


@dataclass(frozen=True, slots=True)
class WaitInfo(Answer):
    """How long requests of `waiter` waited in all, on `cause`, and because of `whom` ("" but for "machine").

    Both are names: `db`, `db/disk0`, `@acme`; host work is `%merge of db/disk0` and the like; `others` are
    the shortest. Requests of a network are frames. For CPU and memory the waiter is a machine, without
    requests; `%host` is what runs on the host and is no machine.
    """

    waiter: str
    cause: Literal["machine", "device", "limit"]
    whom: str
    wait_us: int
    requests: int
    resource: WaitResource = "disk"


@dataclass(frozen=True, slots=True)
class Advice(Answer):
    """A command that would change it, and what it does."""

    command: str
    effect: str


@dataclass(frozen=True, slots=True)
class WhyAnswer(Answer):
    """What a machine waited for in the last `since` seconds: rows, words and advice.

    Requests wait beside one another, so that `wait_us` of a second may be more than a second.
    """

    name: str
    since: int
    wait_us: int
    requests: int
    objective: Literal["none", "met", "missed"]
    rows: list[WaitInfo]
    words: list[str]
    advice: list[Advice]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        rows = [WaitInfo.from_json(row) for row in body["rows"]]
        advice = [Advice.from_json(one) for one in body["advice"]]
        names = ("name", "since", "wait_us", "requests", "objective", "words")
        return cls(**{name: body[name] for name in names}, rows=rows, advice=advice)
