"""What all answers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self


class Answer:
    """Base of the dataclasses."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer; keys that a newer daemon added are left out."""
        known = {one.name for one in fields(cls)}  # type: ignore[arg-type]  # every subclass is a dataclass
        return cls(**{key: value for key, value in body.items() if key in known})
