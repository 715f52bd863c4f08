"""Logging in to machines over ssh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class LoginAnswer(Answer):
    """A machine lets a key in. `host_keys` came from the guest by way of the host, not over a network."""

    user: str
    host_keys: Sequence[str]  # "ssh-ed25519 AAAA...", without comments
