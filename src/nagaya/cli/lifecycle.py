"""`nagaya start`, `stop` and the other commands that change the state of machines, by name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import names_argument
from nagaya.cli.follow import Places, each
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session
from nagaya.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from nagaya.sdk import Machine

AGENT_S = 120.0  # for a guest to boot


def _chosen(session: Session, names: Sequence[str], every: bool) -> list[Machine]:
    """The machines named, each once. Of several names all are checked before anything is done."""
    if every and names:
        raise UsageError("give names or --all, not both")
    if every:
        return session.client.machines.list()
    if not names:
        raise UsageError("name at least one machine, or give --all", hint="`nagaya list` shows them")
    if len(names) == 1:
        return [session.client.machines.named(names[0])]
    known = {machine.name: machine for machine in session.client.machines.list()}
    known |= {machine.id: machine for machine in known.values()}
    missing = [name for name in names if name not in known]
    if missing:
        import difflib

        near = difflib.get_close_matches(missing[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`nagaya list` shows the machines there are"
        quoted = ", ".join(repr(name) for name in missing)
        raise NotFoundError(f"no machine {quoted}; nothing was done", hint=hint)
    return list({known[name].id: known[name] for name in names}.values())


def _with_names(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--all", "every", is_flag=True, help="All machines.")(command)
    command = shared_options(session_formats=False)(command)
    return click.pass_obj(names_argument(command))


_timeout = click.option(
    "--timeout", type=seconds(), default=30.0, metavar="SECONDS", help="Then it is ended (30)."
)


@click.command("start")
@click.option(
    "--wait",
    is_flag=True,
    help="Wait for room if the host has none, and return when the guest's agent answers.",
)
@click.option("--queue", is_flag=True, help="Wait for room if the host has none, and return when it runs.")
@click.option(
    "--timeout",
    type=seconds(),
    metavar="SECONDS",
    help="For --wait (120 once it runs) and --queue (none).",
)
@_with_names
def start_command(
    session: Session,
    /,
    *,
    names: Sequence[str],
    every: bool,
    wait: bool,
    queue: bool,
    timeout: float | None,
) -> None:
    """Start machines.

    What the host cannot keep is refused with the arithmetic. With --queue or --wait it waits until others
    have gone, first come, first served; ctrl-C gives up its place.
    """
    places = Places()

    def act(machine: Machine) -> None:
        began = time.monotonic()
        if every and machine.state in ("running", "io-error"):
            pass
        elif wait or queue:
            places.queue(machine, timeout)
        else:
            machine.start()
        if wait:
            left = AGENT_S if timeout is None else max(0.0, timeout - (time.monotonic() - began))
            machine.wait("agent", left)

    machines = _chosen(session, names, every)
    each(session, machines, act, "starting", "is ready" if wait else "runs", places=places)


@click.command("stop")
@_timeout
@click.option("--force", is_flag=True, help="End it at once, as `kill` does.")
@_with_names
def stop_command(session: Session, names: Sequence[str], every: bool, timeout: float, force: bool) -> None:
    """Ask machines to shut down; end them at the deadline."""

    def act(machine: Machine) -> None:
        if force:
            machine.kill()
        else:
            machine.stop(timeout)

    machines = _chosen(session, names, every)
    if every:
        machines = [machine for machine in machines if machine.state not in ("stopped", "failed")]
    each(session, machines, act, "stopping", "is stopped")


@click.command("restart")
@_timeout
@click.option("--force", is_flag=True, help="Reset: do not ask the guest to shut down.")
@_with_names
def restart_command(session: Session, names: Sequence[str], every: bool, timeout: float, force: bool) -> None:
    """Stop machines and start them again."""
    machines = _chosen(session, names, every)
    each(session, machines, lambda machine: machine.restart(timeout, hard=force), "restarting", "runs again")


@click.command("pause")
@_with_names
def pause_command(session: Session, names: Sequence[str], every: bool) -> None:
    """Stop the CPUs of machines; they keep their memory."""
    each(session, _chosen(session, names, every), lambda machine: machine.pause(), "pausing", "is paused")


@click.command("resume")
@_with_names
def resume_command(session: Session, names: Sequence[str], every: bool) -> None:
    """Let paused machines go on."""
    each(session, _chosen(session, names, every), lambda machine: machine.resume(), "resuming", "runs")


@click.command("kill")
@_with_names
def kill_command(session: Session, names: Sequence[str], every: bool) -> None:
    """End machines at once, as if their plug was pulled. Their disks stay."""
    each(session, _chosen(session, names, every), lambda machine: machine.kill(), "ending", "is stopped")


@click.command("delete")
@click.option("--force", is_flag=True, help="Also machines that run: they are ended first.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before --all.")
@_with_names
def delete_command(session: Session, names: Sequence[str], every: bool, force: bool, yes: bool) -> None:
    """Remove machines and their disks. What was on the disks is gone."""
    machines = _chosen(session, names, every)
    if every and machines and not yes:
        if not sys.stdin.isatty():
            raise UsageError("--all needs --yes where nobody can be asked", hint="nothing was deleted")
        listed = ", ".join(machine.name for machine in machines)
        click.confirm(f"Delete {listed} with their disks?", abort=True, err=True)
    each(session, machines, lambda machine: machine.delete(force=force), "deleting", "is deleted")
