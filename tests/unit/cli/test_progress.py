"""A bar on a terminal, lines in a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import time

import pytest

from nagaya.cli import progress
from nagaya.cli.progress import Bar, Lines, Silent, view
from nagaya.cli.session import Session


def test_a_pipe_gets_a_line_for_each_step_and_one_a_second_at_most() -> None:
    stream = io.StringIO()
    lines = Lines("image web", stream, interval_s=0.05)
    for percent in range(20):
        lines.update("unpack", percent / 100)
    lines.update("configure", None)
    time.sleep(0.06)
    lines.update("configure", 0.9)
    lines.update("configure", 0.9)
    lines.close()
    assert stream.getvalue().splitlines() == [
        "image web: unpack 0%",
        "image web: configure",
        "image web: configure 90%",
    ]


def test_quiet_is_silent_and_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with view(Session(quiet=True), "x") as shown:
        assert isinstance(shown, Silent)
        shown.update("step", 0.5)
    with view(Session(), "x") as shown:
        assert isinstance(shown, Lines)
        shown.update("st\x1bep", 0.5)
    assert capsys.readouterr().err == "x: st�ep 50%\n"


def _on_terminal(monkeypatch: pytest.MonkeyPatch, grace_s: float, job_s: float) -> str:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stream)
        bar = Bar("image web", color=False, grace_s=grace_s)
        bar.update("unpack [bold]", 0.25)
        time.sleep(job_s)
        bar.close()
        stream.flush()
        os.set_blocking(master, False)
        written = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                written += os.read(master, 65536)
    os.close(master)
    return written.decode()


def test_a_bar_shows_step_and_percent_and_leaves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    written = _on_terminal(monkeypatch, grace_s=0.01, job_s=0.6)
    assert "image web" in written
    assert "25%" in written
    assert "unpack [bold]" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"


def test_what_ends_at_once_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _on_terminal(monkeypatch, grace_s=progress.GRACE_S, job_s=0.0) == ""
