"""`nagaya daemon` and `nagaya version`."""

from __future__ import annotations

import os
import select
import signal
import sys
from dataclasses import asdict
from typing import NoReturn

import click

import nagaya
from nagaya.cli.app import shared_options
from nagaya.cli.follow import waiting
from nagaya.cli.output import print_value
from nagaya.cli.session import Session
from nagaya.errors import ConflictError, PermissionDeniedError, TimeoutExpiredError, UnavailableError

STOP_S = 30.0  # the daemon answers requests in flight before it leaves


@click.group("daemon", invoke_without_command=True)
@click.pass_context
def daemon_command(ctx: click.Context) -> None:
    """Start, stop and inspect the daemon. Without a command, run it in this terminal.

    Machines do not depend on it: they run on while it is stopped, and it finds them again.
    """
    if ctx.invoked_subcommand is None:
        _run_here()


def _run_here() -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", "nagaya.daemon"])  # noqa: S606  # it takes our place


@daemon_command.command("start")
@shared_options(session_formats=False)
@click.pass_obj
def _start(session: Session) -> None:
    """Start the daemon in the background, unless it runs."""
    from nagaya.sdk import ensure_daemon

    pid = ensure_daemon()
    if not session.quiet:
        click.echo(f"the daemon runs, pid {pid}")


@daemon_command.command("stop")
@click.option("--all", "every", is_flag=True, help="Also what machines run on, the plane and the zygote.")
@shared_options(session_formats=False)
@click.pass_obj
def _stop(session: Session, every: bool) -> None:
    """Stop the daemon. Machines run on; with --all, none may run."""
    from nagaya.sdk import Client

    try:
        with Client() as client:
            host = client.host()
    except UnavailableError:
        if not session.quiet:
            click.echo("no daemon runs")
        return
    if every and host.machines_running:
        raise ConflictError(
            f"{host.machines_running} machines run and would lose their disks; nothing was stopped",
            hint="`nagaya stop --all` stops them first",
        )
    pids = [host.daemon_pid, host.zygote_pid, host.plane_pid] if every else [host.daemon_pid]
    with waiting(session, "stopping the daemon"):
        for pid in pids:
            if pid is not None:
                end(pid)
    if not session.quiet:
        click.echo("all is stopped" if every else "the daemon is stopped; machines run on")


def end(pid: int) -> None:
    """End a process in good order and wait for that."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], STOP_S)[0]:
            raise TimeoutExpiredError(f"pid {pid} did not end within {STOP_S:.0f} s", hint=f"kill -9 {pid}")
    except PermissionError as error:
        raise PermissionDeniedError(f"you may not stop pid {pid}", hint="become root") from error
    finally:
        os.close(process)


@daemon_command.command("status")
@shared_options()
@click.pass_obj
def _status(session: Session) -> None:
    """Show the daemon and its host. Exit status 8 if no daemon runs."""
    from nagaya.sdk import Client

    with Client() as client:
        print_value(session, asdict(client.host()))


@click.command("version")
@shared_options()
@click.pass_obj
def version_command(session: Session) -> None:
    """Print the versions of client and daemon."""
    from nagaya.sdk import Client

    try:
        with Client() as client:
            daemon = client.version().version
    except UnavailableError:
        daemon = "not running"
    print_value(session, {"client": nagaya.__version__, "daemon": daemon})
