"""Memory of machines: what they have, what the broker moved and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from nagaya.models.answer import Answer
from nagaya.models.waits import Advice


@dataclass(frozen=True, slots=True)
class MachineMemoryInfo(Answer):
    """Memory of one machine that runs, in bytes; None: nobody knows.

    The guest has `size - actual` of its RAM, as it claims; `balloon` is what it was asked to give, `reported`
    what it gave of free pages by itself since its start. `resident` is host memory behind it. `active` is
    what it uses as far as the broker knows, `target` what it is to have next. `need` says in words why it
    needs more at once.

    `resident` is of the guest's memory `guest`, charged to the plane `by_plane` of it, and `own` what its
    processes have beside. `helpers` is on top: what processes have that serve this machine alone (passt).
    """

    name: str
    size: int
    floor: int
    limit: int | None
    weight: int
    resident: int | None
    balloon: int
    actual: int
    reported: int
    available: int | None
    active: int
    target: int
    need: str
    driver: bool  # of the balloon; without one a guest never gives
    refuses: bool  # it was asked several times, and gave nothing
    guest: int | None = None
    by_plane: int | None = None
    own: int | None = None
    helpers: int = 0


@dataclass(frozen=True, slots=True)
class MemoryMove(Answer):
    """One move of the broker. `came` bytes of it had come after `after` seconds; None: that is to be seen.

    `resident` is by how much host memory behind the machine fell meanwhile; negative: it grew. `whom`:
    machines in need, for which it was.
    """

    at: float  # seconds since 1970
    machine: str
    kind: Literal["take", "give", "page-out"]
    bytes: int
    reason: str
    whom: list[str]
    came: int | None = None
    resident: int | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryAnswer(Answer):
    """Memory of all machines that run, and the moves that the broker would make now.

    `budget` is what they may have in all, after the host's other programs took theirs; `left` of it nobody
    holds, `reserve` of that is kept; `room` is by how much guests could grow before anybody is asked.
    `short`: less was left than one of these, and the broker takes from those that have more than their share.
    `moved`: bytes that it moved since the daemon began, by kind.
    """

    broker: bool  # whether it acts
    budget: int
    left: int
    reserve: int
    room: int
    short: bool
    machines: list[MachineMemoryInfo]
    moves: list[MemoryMove]
    moved: dict[str, int]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        parts: dict[str, Any] = {
            "machines": [MachineMemoryInfo.from_json(one) for one in body["machines"]],
            "moves": [MemoryMove.from_json(one) for one in body["moves"]],
        }
        names = ("broker", "budget", "left", "reserve", "room", "short", "moved")
        return cls(**{name: body[name] for name in names}, **parts)


@dataclass(frozen=True, slots=True)
class MemoryWhy(Answer):
    """Why a machine has the memory that it has: what was moved in the last `since` seconds, and words."""

    name: str
    since: int
    moves: list[MemoryMove]
    words: list[str]
    advice: list[Advice]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        moves = [MemoryMove.from_json(one) for one in body["moves"]]
        advice = [Advice.from_json(one) for one in body["advice"]]
        return cls(body["name"], body["since"], moves, body["words"], advice)
