"""`nagaya operation`: long jobs of the daemon."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.follow import follow
from nagaya.cli.machines import ago
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session


def _percent(row: Any) -> str | None:
    return None if row["fraction"] is None else f"{row['fraction']:.0%}"


_COLUMNS = (
    Column("ID", field("id")),
    Column("KIND", field("kind")),
    Column("TARGET", field("target")),
    Column("STATE", field("state")),
    Column("DONE", _percent, right=True),
    Column("STEP", field("step")),
    Column("BEGUN", field("created_at"), lambda at: f"{ago(at)} ago", right=True),
)


@click.group("operation")
def operation_command() -> None:
    """Watch and cancel long jobs: builds, `up`, `down`."""


@operation_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List the jobs that run or ran lately."""
    rows = [asdict(operation.info) for operation in session.client.operations.list()]
    print_rows(session, rows, _COLUMNS, name="id")


@operation_command.command("show")
@click.argument("operation_id", metavar="ID")
@shared_options()
@click.pass_obj
def _show(session: Session, operation_id: str) -> None:
    """Show one job."""
    print_value(session, asdict(session.client.operations.get(operation_id).info))


@operation_command.command("watch")
@click.argument("operation_id", metavar="ID")
@shared_options(session_formats=False)
@click.pass_obj
def _watch(session: Session, operation_id: str) -> None:
    """Wait for a job to end; ctrl-C cancels it."""
    operation = session.client.operations.get(operation_id)
    follow(session, operation, f"{operation.info.kind} {operation.info.target}".strip())


@operation_command.command("cancel")
@click.argument("operation_id", metavar="ID")
@shared_options(session_formats=False)
@click.pass_obj
def _cancel(session: Session, operation_id: str) -> None:
    """End a job; what it had half made is removed."""
    state = session.client.operations.get(operation_id).cancel().state
    if not session.quiet:
        click.echo(f"{operation_id} is {state}")
