"""Asking again while one daemon is replaced by another: its successor knows who waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from nagaya.errors import UnavailableError

ABSENCE = 15.0  # s that a daemon may be away while somebody waits
_PAUSE = 0.05  # s between attempts to reach it

T = TypeVar("T")


def patiently(ask: Callable[[], T], seconds: float = ABSENCE) -> T:
    """What `ask` returns, once a daemon answers. Raises `UnavailableError` if none does for so long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)
