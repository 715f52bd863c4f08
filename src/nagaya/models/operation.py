"""Long jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nagaya.models.answer import Answer


class OperationState(StrEnum):
    """Where a long job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OperationInfo(Answer):
    """A long job. `fraction` is 0 to 1, or null where nobody can say; `revision` grows with every change."""

    id: str
    kind: str
    target: str
    state: OperationState
    step: str
    fraction: float | None
    revision: int
    created_at: float
    ended_at: float | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
