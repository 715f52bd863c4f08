"""The table of commands, the options that all commands share, and how errors become exit statuses."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

import nagaya
from nagaya.cli.session import Session
from nagaya.errors import NagayaError

INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE
COMPLETE_VARIABLE = "_NAGAYA_COMPLETE"

# Name: module below nagaya.cli, help. The function has the name of the command.
COMMANDS = {
    "list": ("machines", "List machines."),
    "show": ("machines", "Show all about one machine."),
    "create": ("create", "Make a machine from an image."),
    "run": ("create", "Make a machine, run it in this terminal, remove it at exit."),
    "set": ("set", "Set fields of a machine or a tenant, live where it runs."),
    "get": ("set", "Print the knobs of a machine or a tenant."),
    "top": ("top", "Show what all machines do, live."),
    "demand": ("demand", "Show what a machine asked of the host, hour by hour."),
    "plan": ("plan", "Say how many machines more fit, and what breaks first."),
    "why": ("why", "Say what a machine waited for, and because of whom."),
    "start": ("lifecycle", "Start machines."),
    "stop": ("lifecycle", "Ask machines to shut down; end them at the deadline."),
    "restart": ("lifecycle", "Stop machines and start them again."),
    "pause": ("lifecycle", "Stop the CPUs of machines."),
    "resume": ("lifecycle", "Let paused machines go on."),
    "kill": ("lifecycle", "End machines at once."),
    "delete": ("lifecycle", "Remove machines and their disks."),
    "console": ("terminal", "Attach this terminal to a machine's console."),
    "exec": ("terminal", "Run a command in a machine."),
    "ssh": ("ssh", "Log in to a machine over its network."),
    "logs": ("terminal", "Print what a machine's console printed."),
    "up": ("files", "Bring up the images and machines of a file."),
    "down": ("files", "Remove the machines of a file."),
    "schema": ("files", "Print the JSON schema of such files."),
    "disk": ("disk", "Disks: make, grow, snapshot, merge, check and export them."),
    "network": ("network", "Networks: make and remove them, plug machines in."),
    "memory": ("memory", "Memory: what machines have, and what moves between them."),
    "group": ("group", "Security groups: what may reach machines, and what they may reach."),
    "image": ("images", "Build, list and remove images."),
    "kernel": ("kernels", "Build and list guest kernels."),
    "host": ("host", "Show what the host has, what is promised, and what is left."),
    "lease": ("lease", "See who may use which disk image, wait for it, hand it over."),
    "operation": ("operations", "Watch and cancel long jobs."),
    "daemon": ("daemon", "Start, stop and inspect the daemon."),
    "doctor": ("doctor", "Check this host."),
    "completion": ("completion", "Print a completion script for a shell."),
    "version": ("daemon", "Print the versions of client and daemon."),
}


class CommandTable(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"nagaya.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, f"{cmd_name}_command")
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name}_command is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "`nagaya --help` lists them"
            raise click.UsageError(f"there is no command {args[0]!r}; {remedy}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in COMMANDS.items()])


@click.group(
    cls=CommandTable, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(nagaya.__version__, prog_name="nagaya", message="%(prog)s %(version)s")
@click.pass_context
def nagaya_command(ctx: click.Context) -> None:
    """Virtual machines on this host.

    Nagaya runs many machines on one computer, each behind its own door. `nagaya up -f FILE` brings up the
    machines of a file, `nagaya list` shows them, `nagaya console NAME` opens one.
    """
    ctx.ensure_object(Session)


def shared_options(session_formats: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--format`, `-q`, `--no-color` and `--debug`, which every command takes; they end in the `Session`."""

    def store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value and not ctx.resilient_parsing:
            setattr(ctx.ensure_object(Session), str(param.name), value)

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        options: list[tuple[tuple[str, ...], dict[str, Any]]] = [
            (("--debug",), {"is_flag": True, "help": "Show the traceback of an error."}),
            (("--no-color",), {"is_flag": True, "help": "Plain text; the same as NO_COLOR=1."}),
            (("-q", "--quiet"), {"is_flag": True, "help": "Only names; no progress."}),
        ]
        if session_formats:
            formats = click.Choice(["table", "json", "yaml", "csv"])
            options.append((("--format",), {"type": formats, "help": "How to print (default: table)."}))
        for names, attributes in options:
            option = click.option(*names, expose_value=False, callback=store, **attributes)
            command = option(command)
        return command

    return add


def run(arguments: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run the command line; returns the exit status (docs/cli.md, "Exit codes")."""
    session = session or Session()
    try:
        with contextlib.closing(session):
            return _invoke(sys.argv[1:] if arguments is None else list(arguments), session)
    except BrokenPipeError:
        _leave_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo(f"interrupted: {error}" if str(error) else "interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return session.failure_status or error.exit_code
    except NagayaError as error:
        if session.debug:
            raise
        _print_error(error, session)
        return session.failure_status or error.exit_code
    except Exception as error:
        if session.debug:
            raise
        kind = type(error).__name__
        _print_error(
            NagayaError(f"{kind}: {error}", hint="this is a fault of Nagaya; --debug shows where"), session
        )
        return session.failure_status or NagayaError.exit_code


def _invoke(arguments: list[str], session: Session) -> int:
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(nagaya_command, {"obj": session}, "nagaya", COMPLETE_VARIABLE, instruction)
    try:
        with nagaya_command.make_context("nagaya", arguments, obj=session) as ctx:
            status = nagaya_command.invoke(ctx)
    except click.exceptions.Exit as leave:
        status = leave.exit_code
    if sys.stdout is not None:  # started with it closed
        sys.stdout.flush()
    return status if isinstance(status, int) else 0


def _print_error(error: NagayaError, session: Session) -> None:
    label = click.style("error:", fg="red", bold=True) if session.colors(sys.stderr) else "error:"
    click.echo(f"{label} {error.message}", err=True, color=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)


def _leave_stdout() -> None:
    """The reader of our output went away: keep the interpreter from writing to it once more at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
