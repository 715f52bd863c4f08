"""Manual pages come from the commands and are sound roff."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nagaya.cli import man
from nagaya.cli.app import COMMANDS
from nagaya.errors import NagayaError


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    man.main(directory)
    return directory


def test_each_command_has_a_page(pages: Path) -> None:
    names = {path.stem for path in pages.iterdir()}
    assert {f"nagaya-{name}" for name in COMMANDS} < names
    assert "nagaya-image-build-debian" in names


def test_the_first_page_has_the_exit_statuses(pages: Path) -> None:
    text = (pages / "nagaya.1").read_text()
    classes: list[type[NagayaError]] = [NagayaError, *NagayaError.__subclasses__()]
    documented = {status for status, _text in man.EXIT_STATUS}
    assert {str(cls.exit_code) for cls in classes} <= documented
    assert ".SH EXIT STATUS" in text


def test_groff_takes_them(pages: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("needs groff (package groff-base)")
    for page in sorted(pages.iterdir()):
        done = subprocess.run(
            [groff, "-man", "-Tutf8", "-ww", str(page)], capture_output=True, text=True, check=True
        )
        assert done.stderr == "", page.name
