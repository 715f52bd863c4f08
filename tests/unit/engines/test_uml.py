"""What the engine refuses before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.uml import UmlEngine
from nagaya.errors import UnsupportedError
from nagaya.paths import Paths
from nagaya.spec import MachineSpec


@pytest.fixture
def engine(tmp_path: Path) -> UmlEngine:
    return UmlEngine(Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c"))


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("cpus", {"cpus": 2}),
        ("cpu_model", {"cpu_model": "baseline"}),
        ("memory.size", {"memory": "16MiB"}),
        ("memory.max", {"memory": {"size": "64MiB", "max": "128MiB"}}),
        ("memory.limit", {"memory": {"size": "512MiB", "limit": "63MiB"}}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    engine: UmlEngine, field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match=f"web: {field}: ") as caught:
        engine.check(MachineSpec(name="web", **fields))
    assert caught.value.facts["field"] == field


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory": "24MiB"},
        {"memory": {"size": "512MiB", "limit": "64MiB"}},
        {"cpu": {"weight": 500, "limit": 0.5, "reservation": 0.25}},
        {"memory": {"size": "512MiB", "reservation": "256MiB", "weight": 200}},
        {"disks": ({"image": "debian"}, {"size": "1GiB"})},
    ],
)
def test_what_can_be_done_passes(engine: UmlEngine, fields: dict[str, Any]) -> None:
    engine.check(MachineSpec(name="web", **fields))
