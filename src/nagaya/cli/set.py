"""`nagaya set` and `get`: knobs of machines and tenants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import setting_names, shared_names
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.session import Session
from nagaya.errors import NotFoundError
from nagaya.settings import flatten, parse

_target = click.argument("name", metavar="NAME|@TENANT", shell_complete=shared_names)

KNOBS = re.compile(r"(cpu|memory|disk|network)\..+|(disks|nics)\[\d+\]\.share\..+|tenant")


def _value(value: Any) -> str:
    return "none" if value in (None, "") else str(value).lower() if isinstance(value, bool) else str(value)


CHANGE_COLUMNS = (
    Column("FIELD", field("field")),
    Column("BEFORE", lambda row: _value(row["before"])),
    Column("AFTER", lambda row: _value(row["after"])),
    Column("EFFECT", lambda row: "now" if row["effect"] == "live" else "at the next start"),
)
KNOB_COLUMNS = (Column("FIELD", field("field")), Column("VALUE", lambda row: _value(row["value"])))


@click.command("set")
@_target
@click.argument("settings", nargs=-1, required=True, metavar="FIELD=VALUE...", shell_complete=setting_names)
@click.option("--dry-run", is_flag=True, help="Check, and say what would change.")
@shared_options()
@click.pass_obj
def set_command(session: Session, name: str, settings: Sequence[str], dry_run: bool) -> None:
    """Set fields of a machine or the knobs of a tenant, all or none.

    Knobs (disk, network, cpu, memory, disks[N].share, nics[N].share, tenant) take effect at once and the
    guest notices nothing. Of memory.size it is asked: to plug up to memory.max, or to give by its balloon
    what is less than it started with. Other fields are set while the machine is down. `none` takes a limit
    away. Units say what is meant:

    \b
        nagaya set db disk.weight=400 disk.reservation=2000iops disk.limit=50MiB/s
        nagaya set db disk.latency_p99=5ms disks[0].share.weight=50 cpu.weight=200
        nagaya set db network.limit=10MiB/s network.weight=200
        nagaya set @acme disk.weight=300
    """
    pairs = [parse(setting) for setting in settings]
    if name.startswith("@"):
        answer = session.client.tenants.set(name, pairs, dry_run=dry_run)
    else:
        answer = session.client.machines.named(name).set(pairs, dry_run=dry_run)
    if session.quiet:
        return
    if answer.changes or session.format != "table":
        print_rows(session, [asdict(change) for change in answer.changes], CHANGE_COLUMNS, name="field")
    else:
        click.echo(f"{answer.name} has that already")


@click.command("get")
@_target
@click.argument("fields", nargs=-1, metavar="[FIELD...]")
@shared_options()
@click.pass_obj
def get_command(session: Session, name: str, fields: Sequence[str]) -> None:
    """Print the knobs of a machine or a tenant, or only some fields.

    One field is printed as its bare value.
    """
    if name.startswith("@"):
        tenant = session.client.tenants.get(name)
        flat = flatten({"disk": tenant.disk, "network": tenant.network})
    else:
        flat = flatten(session.client.machines.get(name).info.spec)
    wanted = fields or [one for one in flat if KNOBS.fullmatch(one)]
    for one in wanted:
        if one not in flat:
            raise NotFoundError(f"{name} has no field {one!r}", hint=f"`nagaya get {name}` shows its knobs")
    if len(fields) == 1 and session.format == "table":
        click.echo(_value(flat[fields[0]]))
    else:
        print_rows(
            session, [{"field": one, "value": flat[one]} for one in wanted], KNOB_COLUMNS, name="field"
        )
