"""`nagaya list` and `show`: what there is to know of machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.cli.traffic import Traffic
from nagaya.units import format_size, human_size

if TYPE_CHECKING:
    from nagaya.sdk import Machine

_UP = ("running", "io-error", "paused")
HISTORY = 10  # lines of the journal that `show` prints


def _image(row: Any) -> str:
    disks = row["spec"].get("disks") or [{}]
    return str(disks[0].get("image") or disks[0].get("path") or "")


def _address(row: Any) -> str:
    nics = row["nics"]
    return next((nic["ipv4"] or nic["ipv6"] for nic in nics if nic["ipv4"] or nic["ipv6"]), "")


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
    Column("ADDRESS", _address),
    Column(
        "UP",
        lambda row: row["started_at"] if row["state"] in _UP else None,
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
    """Show all about one machine: what it is, what it was asked to be, what happened to it.

    With what goes through its NICs while it runs, which takes a moment to measure, and what it waited for.
    """
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
    facts["nics"] = _nics(session, facts["state"], facts.pop("nics"), machine.name)
    facts["waits"] = _waits(machine) if facts["state"] in _UP else []
    facts["spec"] = _brief(facts.pop("spec"))
    facts["history"] = [
        f"{moment(entry.at)} {entry.event} {entry.detail}".rstrip() for entry in journal[-HISTORY:]
    ]
    print_value(session, {key: value for key, value in facts.items() if value not in (None, "", [])})


def _waits(machine: Machine) -> list[str]:
    """What it waited for in the last minute, as `nagaya why` says it; nothing if it waited for nobody."""
    answer = machine.why()
    return answer.words if answer.rows else []


def _nics(session: Session, state: str, nics: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The NICs as people read them, with what went through those of a machine that runs."""
    traffic = Traffic.of(session.client).nics(name) if nics and state in _UP else {}
    shown = [nic | {"link": "up" if nic["link"] else "down"} | traffic.get(nic["name"], {}) for nic in nics]
    return [{key: value for key, value in nic.items() if value not in ("", [])} for nic in shown]


def _brief(value: Any) -> Any:
    """A specification without what is empty."""
    if not isinstance(value, dict):
        return [_brief(one) for one in value] if isinstance(value, list) else value
    inner = {key: _brief(one) for key, one in value.items()}
    return {key: one for key, one in inner.items() if one not in (None, "", [], {}, "0B")}
