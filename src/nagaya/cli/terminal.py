"""`nagaya console`, `exec` and `logs`: what passes between this terminal and a guest."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from nagaya.ansi import AnsiStripper
from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.follow import Interrupted
from nagaya.cli.rawterm import DETACH_BYTE, attach, write_all
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.errors import NotFoundError, PermissionDeniedError, UsageError

if TYPE_CHECKING:
    from nagaya.sdk.machines import ExecResult, Machine

EXEC_FAILED = 125  # our own failure, where the guest command's status would come through (as docker exec)
EXEC_DENIED, EXEC_NOT_FOUND = 126, 127  # as in a shell

LONG_S = 86400.0  # what the API takes at most


def _detach_byte(_ctx: click.Context, _param: click.Parameter, text: str) -> int:
    name = text.lower().removeprefix("ctrl-").upper()
    if len(name) == 1 and "@" <= name <= "_" and text.lower().startswith("ctrl-"):
        return ord(name) & 0x1F
    raise click.BadParameter(f"{text!r} is not ctrl- and one of a to z, [, \\, ], ^, _")


detach_option = click.option(
    "--detach-key", default="ctrl-]", callback=_detach_byte, metavar="KEY", help="Key that detaches (ctrl-])."
)


@click.command("console")
@name_argument
@detach_option
@shared_options(session_formats=False)
@click.pass_obj
def console_command(session: Session, name: str, detach_key: int) -> None:
    """Attach this terminal to a machine's console. ctrl-] detaches; the machine runs on."""
    open_console(session, session.client.machines.get(name), detach_key)


class _Console:
    """A websocket as `rawterm` wants it: where the daemon dies, that is an `OSError`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def send(self, message: bytes) -> None:
        """Type."""
        with self._closed_is_os_error():
            self._connection.send(message)

    def __iter__(self) -> Iterator[bytes]:
        with self._closed_is_os_error():
            yield from self._connection

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    @contextmanager
    def _closed_is_os_error(self) -> Iterator[None]:
        from websockets.exceptions import ConnectionClosed

        try:
            yield
        except ConnectionClosed as error:
            raise OSError(str(error)) from error


def open_console(session: Session, machine: Machine, detach_byte: int = DETACH_BYTE) -> bool:
    """Attach to the console. Returns whether the user detached; else the console ended."""
    sys.stdout.flush()
    with machine.console() as stream:
        if sys.stdin.isatty() and not session.quiet:
            key = f"ctrl-{chr(detach_byte | 0x40).lower()}"
            click.echo(f"Connected to {machine.name}; {key} detaches.", err=True)
        detached = attach(_Console(stream), sys.stdin.fileno(), sys.stdout.fileno(), detach_byte)
    if sys.stdin.isatty() and not session.quiet:
        end = f"Detached from {machine.name}." if detached else f"The console of {machine.name} closed."
        click.echo(end, err=True)
    return detached


class GuestCommand(click.Command):
    """A command that ends with a guest command's status; its own failures are told by `failed`."""

    failed = EXEC_FAILED

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ensure_object(Session).failure_status = self.failed
        return super().parse_args(ctx, args)


VERBATIM = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.command("exec", cls=GuestCommand, context_settings=VERBATIM)
@name_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND...")
@click.option(
    "-e", "--env", multiple=True, metavar="NAME=VALUE", help="Variable of its environment; may be repeated."
)
@click.option(
    "-n", "--no-stdin", is_flag=True, help="Do not read standard input; in loops that read themselves."
)
@click.option("--timeout", type=seconds(), default=LONG_S, metavar="SECONDS", help="End it then (a day).")
@click.option(
    "--wait",
    type=seconds(),
    default=10.0,
    metavar="SECONDS",
    help="How long to wait for the guest to come up (10).",
)
@shared_options(session_formats=False)
@click.pass_obj
def exec_command(
    session: Session,
    /,
    *,
    name: str,
    command: Sequence[str],
    env: Sequence[str],
    no_stdin: bool,
    timeout: float,
    wait: float,
) -> int:
    """Run a command in a machine, as root, through its guest agent.

    Output and exit status are the command's. Standard input is passed on, unless it is a terminal. When
    Nagaya itself fails, the status is 125; 126 and 127 say that the guest cannot run or find the command.
    """
    variables = parse_env(env)
    machine = session.client.machines.get(name)
    argv = strip_dashes(command)
    try:
        return run_in_guest(session, machine, argv, no_stdin, env=variables, timeout=timeout, wait=wait)
    except KeyboardInterrupt:
        raise Interrupted(f"{argv[0]} goes on in {name}") from None


def run_in_guest(
    session: Session, machine: Machine, argv: Sequence[str], no_stdin: bool, **options: Any
) -> int:
    """Run a command, pass on what it writes; its exit status, or a shell's for what could not be run."""
    stdin = b"" if no_stdin or sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
    try:
        result = machine.exec(argv, stdin=stdin, **options)
    except NotFoundError:
        session.failure_status = EXEC_NOT_FOUND
        raise
    except PermissionDeniedError:
        session.failure_status = EXEC_DENIED
        raise
    return _print_result(result)


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping."""
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UsageError(f"{pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def strip_dashes(command: Sequence[str]) -> list[str]:
    """The command without the `--` that may stand before it."""
    if command[:1] and command[0].startswith("-") and command[0] != "--":
        raise UsageError(
            f"{command[0]!r} stands after the machine's name",
            hint="options stand before the name; write -- before a command that begins with a hyphen",
        )
    return list(command[1:] if command[:1] and command[0] == "--" else command)


def _print_result(result: ExecResult) -> int:
    """Pass on what a guest command wrote; returns its exit status."""
    for stream, output in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
        stream.flush()
        stream.buffer.write(output)
        stream.flush()
    if result.truncated:
        click.echo("warning: the guest agent cut the output at its limit", err=True)
    return result.exit_code


@click.command("logs")
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last lines.")
@click.option("--raw", is_flag=True, help="With all control sequences, as the guest wrote them.")
@click.option("--engine", is_flag=True, help="Messages of the machine's process instead of its console.")
@shared_options(session_formats=False)
@click.pass_obj
def logs_command(
    session: Session, /, *, name: str, follow: bool, tail: int | None, raw: bool, engine: bool
) -> None:
    """Print what a machine's console printed. Control sequences are taken out, or `--raw` keeps them."""
    machine = session.client.machines.get(name)
    source: Literal["console", "engine"] = "engine" if engine else "console"
    stripper = AnsiStripper()
    sys.stdout.flush()
    if follow:
        chunks = machine.follow_logs(tail=tail, raw=raw, source=source)
    else:
        chunks = iter([machine.logs(tail=tail, raw=raw, source=source)])
    for chunk in chunks:
        # The daemon strips too; a reader's terminal does not have to trust it.
        write_all(sys.stdout.fileno(), chunk if raw else stripper.feed(chunk).encode())
