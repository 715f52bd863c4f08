"""`nagaya kernel`: what guests boot."""

from __future__ import annotations

from dataclasses import asdict

import click

from nagaya.cli.app import shared_options
from nagaya.cli.follow import follow
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.session import Session

_COLUMNS = (
    Column("NAME", field("name")),
    Column("DEFAULT", field("default"), lambda default: "yes" if default else "-"),
    Column("ORIGIN", field("origin")),
    Column("PATH", field("path")),
)


@click.group("kernel")
def kernel_command() -> None:
    """Build and list guest kernels."""


@kernel_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List guest kernels."""
    print_rows(session, [asdict(kernel) for kernel in session.client.kernels.list()], _COLUMNS)


@kernel_command.command("build")
@click.argument("kind", type=click.Choice(["uml", "kvm"]))
@shared_options(session_formats=False)
@click.pass_obj
def _build(session: Session, kind: str) -> None:
    """Build our own kernel for an engine (a few minutes the first time). Prints its name."""
    result = follow(session, session.client.kernels.build(kind), f"kernel {kind}")
    click.echo(result.get("name", kind))
