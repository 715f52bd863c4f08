"""What is generated from the sources is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_pages_are_those_of_the_sources() -> None:
    outputs = runpy.run_path(str(ROOT / "scripts/reference"))["outputs"]()
    for path, text in outputs.items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)} is stale: run scripts/reference"
