"""Memory of a guest that was moved while it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class MemoryPlace(Answer):
    """Where a guest's memory is, by the host's counters, in bytes.

    `huge`: what of it is mapped by huge pages; `nodes`: what the machine's process has mapped of each node.
    """

    resident: int
    swapped: int
    huge: int
    nodes: dict[str, int]


@dataclass(frozen=True, slots=True)
class RelocationAnswer(Answer):
    """What a move achieved: `done` of the `asked` bytes, in `seconds`, and by which of the kernel's means."""

    name: str
    kind: str  # "swap", "resident", "huge", "small", "node"
    asked: int
    done: int
    how: str
    seconds: float
    before: MemoryPlace
    after: MemoryPlace

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        places = {name: MemoryPlace.from_json(body[name]) for name in ("before", "after")}
        return super(RelocationAnswer, cls).from_json({**body, **places})
