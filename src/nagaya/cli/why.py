"""`nagaya why`: what a machine waited for, because of whom, and which knob would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.memory import print_answer, print_why_memory
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.quantities import span
from nagaya.cli.session import Session
from nagaya.units import human_time

if TYPE_CHECKING:
    from nagaya.models.waits import WaitResource

_SPAN = span(3600, "more is not kept")


def _each(row: Mapping[str, Any]) -> float | None:
    """Microseconds of one request; a wait for a CPU has none."""
    return row["wait_us"] / row["requests"] if row["requests"] else None


WAIT_COLUMNS = (
    Column("WAITER", field("waiter")),
    Column("AT", field("resource")),
    Column("ON", field("cause")),
    Column("BECAUSE OF", field("whom")),
    Column("WAITED", field("wait_us"), human_time, right=True),
    Column("REQUESTS", lambda row: row["requests"] or None, right=True),
    Column("EACH", _each, human_time, right=True),
)


@click.command("why")
@name_argument
@click.option("--since", type=_SPAN, default="1m", metavar="SPAN", help="90s, 5m, 1h at most (1m).")
@click.option("--cpu", "resource", flag_value="cpu", help="Only what it waited for at the CPUs.")
@click.option("--disk", "resource", flag_value="disk", help="Only what its requests waited for at disks.")
@click.option("--network", "resource", flag_value="network", help="Only what its frames waited for.")
@click.option("--memory", is_flag=True, help="Why it has the memory that it has, and what was moved.")
@shared_options()
@click.pass_obj
def why_command(session: Session, name: str, since: int, resource: WaitResource | None, memory: bool) -> None:
    """Say what a machine waited for, because of whom, and which knob would change it.

    At disks, networks and CPUs, and for memory.
    """
    if memory:
        print_why_memory(session, session.client.machines.named(name).why_memory(since))
        return
    answer = session.client.machines.named(name).why(since, resource)
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
