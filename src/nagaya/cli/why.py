"""`nagaya why`: what a machine waited for at its disks, because of whom, and which knob would change it."""

from __future__ import annotations

from dataclasses import asdict

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.memory import print_answer, print_why_memory
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.quantities import span
from nagaya.cli.session import Session
from nagaya.units import human_time

_SPAN = span(3600, "more is not kept")

WAIT_COLUMNS = (
    Column("WAITER", field("waiter")),
    Column("ON", field("cause")),
    Column("BECAUSE OF", field("whom")),
    Column("WAITED", field("wait_us"), human_time, right=True),
    Column("REQUESTS", field("requests"), right=True),
    Column("EACH", lambda row: row["wait_us"] / max(1, row["requests"]), human_time, right=True),
)


@click.command("why")
@name_argument
@click.option("--since", type=_SPAN, default="1m", metavar="SPAN", help="90s, 5m, 1h at most (1m).")
@click.option("--memory", is_flag=True, help="Why it has the memory that it has, and what was moved.")
@shared_options()
@click.pass_obj
def why_command(session: Session, name: str, since: int, memory: bool) -> None:
    """Say what a machine waited for at its disks, because of whom, and which knob would change it."""
    if memory:
        print_why_memory(session, session.client.machines.named(name).why_memory(since))
        return
    answer = session.client.machines.named(name).why(since)
    rows = [asdict(row) for row in answer.rows]
    if session.format == "csv":
        print_rows(session, rows, WAIT_COLUMNS)
    elif session.format != "table":
        print_value(session, asdict(answer))
    elif session.quiet:
        for whom in dict.fromkeys(row["whom"].partition("/")[0] for row in rows if row["whom"]):
            click.echo(whom)
    else:
        print_answer(session, answer, rows, WAIT_COLUMNS)
