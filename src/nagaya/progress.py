"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Called with the step in words ("unpack the source") and the fraction of the whole that is done, 0 to 1, or
None where nobody can say. May be called from a worker thread; must return at once and raise nothing."""


def silent(step: str, fraction: float | None) -> None:
    """A `Progress` for callers who do not watch."""
