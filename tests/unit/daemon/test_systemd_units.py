"""The systemd units that are shipped."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

from nagaya.daemon.units import install, unit_files


def test_each_unit_runs_a_program_that_is_there() -> None:
    assert set(unit_files()) == {"nagaya.service", "nagaya-plane.service", "nagaya-zygote.service"}
    for text in unit_files("/opt/python").values():
        unit = configparser.ConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        program, option, module = unit["Service"]["ExecStart"].split()
        assert (program, option) == ("/opt/python", "-m")
        assert importlib.util.find_spec(module) is not None


def test_stopping_the_daemon_or_the_zygote_ends_nothing_else() -> None:
    for name in ("nagaya.service", "nagaya-zygote.service"):
        assert "KillMode=process\n" in unit_files()[name]


def test_they_are_written_where_asked(tmp_path: Path) -> None:
    written = install(tmp_path)
    assert {path.name for path in written} == set(unit_files())
    assert all("@python@" not in path.read_text() for path in written)
