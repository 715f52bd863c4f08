"""The process of one machine, once it is in its jail (docs/engines.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nagaya.errors import UnsupportedError


def main(_config: Mapping[str, Any], _fds: Mapping[str, int], _ready: Callable[[], None]) -> None:
    """Be the machine. Does not return; raises `NagayaError` if it cannot be set up."""
    raise UnsupportedError("the engine kvm is not built yet")
