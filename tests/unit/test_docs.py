"""The pages refer to what is there, and say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nagaya.cli import man
from nagaya.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_page_of_the_command_line_has_every_exit_status() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert rows == [status for status, _text in man.EXIT_STATUS]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_pages_use_commands_that_exist(page: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    used = set(re.findall(r"\bnagaya ([a-z]+)", "\n".join(blocks)))
    assert used
    assert used <= set(COMMANDS)
