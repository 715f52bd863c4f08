"""`nagaya group`: security groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import group_names
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.errors import UsageError

_COLUMNS = (
    Column("NAME", field("name")),
    Column("IN", lambda row: " ".join(row["inbound"]) or "none"),
    Column("OUT", lambda row: " ".join(row["outbound"]) or "none"),
    Column("MACHINES", lambda row: " ".join(row["machines"])),
)

_group = click.argument("group", shell_complete=group_names)
_plain = shared_options(session_formats=False)
_in = click.option(
    "--in",
    "inbound",
    multiple=True,
    metavar="RULE",
    help="What others may open to it, or none; repeatable.",
)
_out = click.option(
    "--out", "outbound", multiple=True, metavar="RULE", help="What it may open, or none; repeatable."
)


@click.group("group")
def group_command() -> None:
    """Security groups: what may reach machines, and what they may reach.

    A NIC in a group is asked only for what a rule of one of its groups allows; answers pass. A rule is
    PROTOCOL[:PORT[-PORT]][@PEER]: tcp:80, udp:53@10.0.0.0/8, tcp:5432@group:web, icmp, any.
    """


@group_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List all security groups."""
    print_rows(session, [asdict(one) for one in session.client.groups.list()], _COLUMNS)


@group_command.command("show")
@_group
@shared_options()
@click.pass_obj
def _show(session: Session, group: str) -> None:
    """Show the rules of a group, and the machines that are in it."""
    print_value(session, asdict(session.client.groups.get(group)))


@group_command.command("create")
@click.argument("name")
@_in
@_out
@_plain
@click.pass_obj
def _create(session: Session, name: str, inbound: Sequence[str], outbound: Sequence[str]) -> None:
    """Make a group. Without --in nothing may be opened to it, without --out it may open everything.

    \b
        nagaya group create web --in tcp:80 --in tcp:22@10.0.0.0/8
        nagaya group create db --in tcp:5432@group:web --out none
    """
    session.client.groups.create(name, inbound=_rules(inbound), outbound=_rules(outbound or ("any",)))
    click.echo(name)


@group_command.command("set")
@_group
@_in
@_out
@_plain
@click.pass_obj
def _set(session: Session, group: str, inbound: Sequence[str], outbound: Sequence[str]) -> None:
    """Give a group other rules, in the place of those of that direction; live on machines that run."""
    if not inbound and not outbound:
        raise UsageError("nothing to set", hint="give --in or --out; `none` allows nothing")
    given = {
        "inbound": _rules(inbound) if inbound else None,
        "outbound": _rules(outbound) if outbound else None,
    }
    session.client.groups.set(group, **given)
    if not session.quiet:
        click.echo(f"{group} is set")


@group_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=group_names)
@_plain
@click.pass_obj
def _delete(session: Session, names: Sequence[str]) -> None:
    """Remove groups that no machine is in."""
    for name in names:
        session.client.groups.delete(name)
        if not session.quiet:
            click.echo(f"{name} is deleted")


def _rules(given: Sequence[str]) -> list[str]:
    return [rule for rule in given if rule != "none"]
