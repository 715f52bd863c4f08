"""Asking again while one daemon is replaced by another: its successor knows who waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from nagaya.errors import UnavailableError

ABSENCE = 15.0  # s that a daemon may be away while somebody waits
_PAUSE = 0.2  # s between attempts to reach it

T = TypeVar("T")


def patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns, once a daemon answers. Raises `UnavailableError` if none does for too long."""
    deadline = time.monotonic() + ABSENCE
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)
