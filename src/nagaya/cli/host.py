"""`nagaya host`: what the host has, keeps, has promised and has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import host_setting_names
from nagaya.cli.machines import ago
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.cli.set import CHANGE_COLUMNS
from nagaya.settings import parse
from nagaya.units import human_size


def _text(amount: float | None, unit: str) -> str:
    if amount is None:
        return "unknown"
    if unit in ("bytes", "bytes/s"):
        return human_size(amount) + unit.removeprefix("bytes")
    return f"{amount:.2f}" if unit == "CPUs" else f"{amount:.0f} {unit}"


def _amount(heading: str, name: str) -> Column:
    return Column(heading, lambda row: (row[name], row["unit"]), lambda both: _text(*both), right=True)


_COLUMNS = (
    Column("RESOURCE", lambda row: " ".join(filter(None, (row["resource"], row["name"])))),
    _amount("TOTAL", "total"),
    _amount("KEPT", "kept"),
    _amount("PROMISED", "promised"),
    _amount("LEFT", "left"),
    _amount("USED", "used"),
    Column("OVERCOMMIT", field("overcommit")),
)
_NODE_COLUMNS = (
    Column("NODE", field("id")),
    Column("CPUS", lambda row: len(row["cpus"]), right=True),
    Column("MEMORY", field("memory"), human_size, right=True),
    Column("FREE", field("free"), human_size, right=True),
)
_QUEUE_COLUMNS = (
    Column("WAITING", field("machine")),
    Column("FOR", field("since"), ago, right=True),
    Column("BECAUSE", field("reason")),
)


@click.group("host", invoke_without_command=True)
@shared_options()
@click.pass_context
def host_command(ctx: click.Context) -> None:
    """Show what the host has, what stays with it, what is promised to machines, used and left.

    Disks are known once they have been measured, under load; networks by their uplinks' rates.
    """
    if ctx.invoked_subcommand is not None:
        return
    session: Session = ctx.obj
    report = asdict(session.client.report())
    if session.format == "csv" or session.quiet:
        print_rows(session, report["resources"], _CSV_COLUMNS, name="resource")
    elif session.format != "table":
        print_value(session, report)
    else:
        _print(session, report)


@host_command.command("set")
@click.argument(
    "settings", nargs=-1, required=True, metavar="FIELD=VALUE...", shell_complete=host_setting_names
)
@click.option("--dry-run", is_flag=True, help="Check, and say what would change.")
@shared_options()
@click.pass_obj
def _set(session: Session, settings: Sequence[str], dry_run: bool) -> None:
    """Set how much of the host machines may be promised, all or none.

    Overcommit is a policy by name: `none` counts all that a guest can see, `fair` what it reserves, and a
    ratio lets guests see so many times what there is. What is kept is never promised. What has been promised
    before stays so.

    \b
        nagaya host set memory.overcommit=fair memory.kept=2GiB
        nagaya host set cpu.overcommit=4 cpu.kept=0.5
    """
    answer = session.client.set_host([parse(setting) for setting in settings], dry_run=dry_run)
    if session.quiet:
        return
    if answer.changes or session.format != "table":
        print_rows(session, [asdict(change) for change in answer.changes], CHANGE_COLUMNS, name="field")
    else:
        click.echo("the host has that already")


_CSV_COLUMNS = tuple(
    Column(name, field(name))
    for name in (
        "resource",
        "name",
        "unit",
        "total",
        "kept",
        "promised",
        "visible",
        "used",
        "left",
        "overcommit",
    )
)


def _print(session: Session, report: dict[str, Any]) -> None:
    print_rows(session, report["resources"], _COLUMNS)
    if len(report["nodes"]) > 1:
        click.echo()
        print_rows(session, report["nodes"], _NODE_COLUMNS)
    if report["waiting"]:
        click.echo()
        print_rows(session, report["waiting"], _QUEUE_COLUMNS)
    click.echo()
    click.echo(_pressure(report["pressure"]))
    for alarm in report["pressure"]["alarms"]:
        click.echo(f"{alarm['name']}: {alarm['text']}\n    {alarm['hint']}")


def _pressure(pressure: dict[str, Any]) -> str:
    things = (("a CPU", "cpu"), ("memory", "memory"), ("a disk", "disk"))
    waits = [f"{pressure[key]['some_avg10']:.0%} for {what}" for what, key in things if pressure[key]]
    if not waits:
        return "What work waits for is not known: nagaya doctor says why."
    return f"Of the last 10 s some work waited {', '.join(waits)}."
