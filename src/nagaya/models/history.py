"""What happened to machines, and what ran in them."""

from __future__ import annotations

from dataclasses import dataclass

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class JournalEntry(Answer):
    """One line of a machine's history."""

    seq: int
    at: float
    event: str
    detail: str


@dataclass(frozen=True, slots=True)
class ExecAnswer(Answer):
    """How a guest command ended; outputs are base64. `truncated`: the agent cut an output at its limit."""

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool = False
