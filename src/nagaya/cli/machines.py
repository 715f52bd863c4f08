"""`nagaya list`, `show`, `start`, `stop` and the other commands that act on machines by name."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_names
from nagaya.cli.follow import each
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.errors import NotFoundError, UsageError
from nagaya.units import format_size, human_size

if TYPE_CHECKING:
    from nagaya.sdk import Machine

HISTORY = 10  # lines of the journal that `show` prints


name_argument = click.argument("name", shell_complete=machine_names)
_names_argument = click.argument("names", nargs=-1, metavar="NAME...", shell_complete=machine_names)


def _image(row: Any) -> str:
    disks = row["spec"].get("disks") or [{}]
    return str(disks[0].get("image") or disks[0].get("path") or "")


def ago(at: float | None) -> str:
    """`3 h`, `12 s`: how long since `at`, in seconds of the epoch."""
    if at is None:
        return ""
    seconds = max(0.0, time.time() - at)
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds:.0f} s"


def moment(at: float | None) -> str | None:
    """Local time as people and programs read it: 2026-05-04 13:14:15+02:00."""
    from datetime import UTC, datetime

    return None if at is None else datetime.fromtimestamp(at, UTC).astimezone().isoformat(" ", "seconds")


MACHINE_COLUMNS = (
    Column("NAME", field("name")),
    Column("STATE", field("state")),
    Column("IMAGE", _image),
    Column("CPUS", field("cpus"), right=True),
    Column("MEMORY", field("memory"), human_size, right=True),
    Column("ENGINE", field("engine")),
    Column(
        "UP",
        lambda row: row["started_at"] if row["state"] in ("running", "paused") else None,
        ago,
        right=True,
    ),
    Column("CAUSE", field("cause")),
)


@click.command("list")
@click.option("--state", multiple=True, metavar="STATE", help="Only machines in this state; may be repeated.")
@shared_options()
@click.pass_obj
def list_command(session: Session, state: Sequence[str]) -> None:
    """List machines."""
    print_machines(session, [m for m in session.client.machines.list() if not state or m.state in state])


def print_machines(session: Session, machines: Sequence[Machine]) -> None:
    """The table of `machines`; the column of causes only where there is one."""
    rows = [asdict(machine.info) for machine in machines]
    columns = MACHINE_COLUMNS if any(row["cause"] for row in rows) else MACHINE_COLUMNS[:-1]
    print_rows(session, rows, columns)


@click.command("show")
@name_argument
@shared_options()
@click.pass_obj
def show_command(session: Session, name: str) -> None:
    """Show all about one machine: what it is, what it was asked to be, what happened to it."""
    machine = session.client.machines.get(name)
    if session.quiet:
        click.echo(machine.name)
        return
    journal = machine.journal()
    facts = asdict(machine.info)
    if session.format in ("json", "csv"):
        print_value(session, {**facts, "journal": [asdict(entry) for entry in journal]})
        return
    for key in ("created_at", "changed_at", "started_at"):
        facts[key.removesuffix("_at")] = moment(facts.pop(key))
    facts["memory"] = format_size(facts["memory"])
    facts["spec"] = _brief(facts.pop("spec"))
    facts["history"] = [
        f"{moment(entry.at)} {entry.event} {entry.detail}".rstrip() for entry in journal[-HISTORY:]
    ]
    print_value(session, {key: value for key, value in facts.items() if value not in (None, "")})


def _brief(value: Any) -> Any:
    """A specification without what is empty."""
    if not isinstance(value, dict):
        return [_brief(one) for one in value] if isinstance(value, list) else value
    inner = {key: _brief(one) for key, one in value.items()}
    return {key: one for key, one in inner.items() if one not in (None, "", [], {}, "0B")}


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
    return click.pass_obj(_names_argument(command))


_timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), default=30.0, metavar="SECONDS", help="Then it is ended (30)."
)


@click.command("start")
@click.option("--wait", is_flag=True, help="Return when the guest's agent answers: services can be reached.")
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=120.0, metavar="SECONDS", help="For --wait (120)."
)
@_with_names
def start_command(session: Session, names: Sequence[str], every: bool, wait: bool, timeout: float) -> None:
    """Start machines."""

    def act(machine: Machine) -> None:
        if not (every and machine.state == "running"):
            machine.start()
        if wait:
            machine.wait("agent", timeout)

    each(session, _chosen(session, names, every), act, "starting", "is ready" if wait else "runs")


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
