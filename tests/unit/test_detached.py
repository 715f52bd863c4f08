"""Helper processes that outlive their starter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nagaya.detached import log_tail, start_detached
from nagaya.paths import Paths

HELPER = """
import os, sys
if os.fork():
    os._exit(0)
print("helper of", os.environ["NAGAYA_RUN_DIR"], "in session", os.getsid(0), flush=True)
if {ready}:
    os.write(int(sys.argv[3]), b"ready\\n")
"""


def install(directory: Path, monkeypatch: pytest.MonkeyPatch, *, ready: bool) -> Paths:
    """A program `helper_program` that can be run with `-m`, and the paths it gets."""
    (directory / "helper_program.py").write_text(HELPER.format(ready=ready))
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return Paths(directory / "r", directory / "s", directory / "c")


@pytest.mark.anyio
@pytest.mark.parametrize("ready", [True, False])
async def test_it_returns_when_the_helper_serves_or_has_given_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    paths = install(directory, monkeypatch, ready=ready)
    log = paths.state / "helper.log"
    await start_detached("helper_program", paths, log)
    first, _, session = log_tail(log).partition(" in session ")
    assert first == f"helper of {paths.run}"
    assert int(session) != os.getsid(0)
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.anyio
async def test_a_long_log_is_put_aside(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = install(directory, monkeypatch, ready=True)
    paths.state.mkdir()
    log = paths.state / "helper.log"
    log.write_bytes(b"old\n" + b"." * 5 * 2**20)
    await start_detached("helper_program", paths, log)
    assert log_tail(log).startswith("helper of ")
    assert log.with_name("helper.log.1").read_bytes().startswith(b"old\n")


def test_the_tail_is_the_end_of_the_log(directory: Path) -> None:
    log = directory / "some.log"
    assert log_tail(log) == ""
    log.write_bytes(b"x" * 5000 + b"\xff the end\n")
    assert log_tail(log).endswith("x\N{REPLACEMENT CHARACTER} the end")
    assert len(log_tail(log)) < 2001
