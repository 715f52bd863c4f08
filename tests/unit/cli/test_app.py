"""The table of commands, and how an invocation ends."""

from __future__ import annotations

import importlib
import subprocess
import sys

import click
import pytest

from nagaya.cli import app
from nagaya.cli.session import Session
from nagaya.errors import NagayaError, NotFoundError


def _failing(error: BaseException) -> Session:
    def connect() -> None:
        raise error

    return Session(connect=connect)  # type: ignore[arg-type]  # it never returns


@pytest.mark.parametrize("name", list(app.COMMANDS))
def test_the_table_is_true(name: str) -> None:
    module, text = app.COMMANDS[name]
    command = getattr(importlib.import_module(f"nagaya.cli.{module}"), f"{name}_command")
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
    assert text.endswith(".")


def test_an_error_has_its_status_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = NotFoundError("no machine 'x'", hint="`nagaya list` shows them")
    assert app.run(["list"], _failing(error)) == NotFoundError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no machine 'x'\n  `nagaya list` shows them\n"


def test_exec_tells_our_failure_from_the_guests(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["exec", "x", "--", "true"], _failing(NotFoundError("no"))) == 125
    assert "error: no" in capsys.readouterr().err


def test_a_fault_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["list"], _failing(KeyError("spec"))) == 1
    captured = capsys.readouterr()
    assert "error: KeyError: 'spec'" in captured.err
    assert "--debug" in captured.err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(NagayaError):
        app.run(["list", "--debug"], _failing(NotFoundError("no")))


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["list"], _failing(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_while_the_program_comes_up_is_130_too() -> None:
    program = """
import sys
class Interrupted:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "nagaya.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted)
from nagaya.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["lst"], "there is no command 'lst'; did you mean 'list'?"),
        (["zzz"], "`nagaya --help` lists them"),
        (["list", "--format", "xml"], "'xml' is not one of"),
        (["show"], "Missing argument 'NAME'"),
        (["image", "build"], "Build an image"),
    ],
)
def test_a_malformed_line_is_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(arguments) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err + captured.out


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m nagaya.cli schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "{"
    assert done.stdout.splitlines()[1] in ("0", "141"), "141 unless all fitted into the pipe"
    assert done.stderr == ""


def test_a_closed_output_is_no_error() -> None:
    script = f"{sys.executable} -m nagaya.cli schema >&-"
    done = subprocess.run(["bash", "-c", script], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help_need_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("nagaya ")
    assert app.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in app.COMMANDS)


def test_what_a_command_does_not_need_is_not_imported() -> None:
    script = (
        "import sys; from nagaya.cli.app import run; run(['--version']);"
        "print(sorted({'pydantic', 'rich', 'yaml', 'httpx2', 'asyncio', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_completion_scripts_name_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert app.run(["completion", shell]) == 0
        assert app.COMPLETE_VARIABLE in capfd.readouterr().out


def test_a_shell_completes_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(app.COMPLETE_VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "nagaya st")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert app.run([]) == 0
    assert capsys.readouterr().out.splitlines() == ["plain,start", "plain,stop"]
