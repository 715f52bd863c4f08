"""Knobs that were turned, and tenants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from nagaya.models.answer import Answer


@dataclass(frozen=True, slots=True)
class Change(Answer):
    """A field that is set. `effect`: "live", in effect now; "start", from the next start on."""

    field: str
    before: Any
    after: Any
    effect: Literal["live", "start"]


@dataclass(frozen=True, slots=True)
class ChangesAnswer(Answer):
    """What a `set` changed, or with `dry_run` would have; what was so already is left out."""

    name: str
    changes: list[Change]
    dry_run: bool
    seconds: float  # from the request until all was in effect

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        changes = [Change.from_json(change) for change in body["changes"]]
        return cls(str(body["name"]), changes, bool(body["dry_run"]), float(body["seconds"]))


@dataclass(frozen=True, slots=True)
class TenantInfo(Answer):
    """A tenant: its knobs as in a specification, and the names of its machines."""

    name: str
    disk: dict[str, Any]
    network: dict[str, Any]
    machines: list[str]
