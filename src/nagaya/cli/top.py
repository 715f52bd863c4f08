"""`nagaya top`: what all machines do, live."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.output import Column, print_rows
from nagaya.cli.seconds import seconds
from nagaya.cli.session import Session

if TYPE_CHECKING:
    from nagaya.top import columns

ORDERS = (
    *("name", "cpu", "cpuwait", "throttled", "memory", "memwait", "iops", "rate", "received", "sent", "p99"),
    *("flight", "waited"),
)


@click.command("top")
@click.option("--once", is_flag=True, help="Print one table and end; so it is where there is no terminal.")
@click.option(
    "--interval",
    type=seconds(0.1, 3600),
    default=1.0,
    metavar="SECONDS",
    help="Between two looks (1).",
)
@click.option("--sort", "order", type=click.Choice(ORDERS), default="name", help="Sort by this (name).")
@shared_options()
@click.pass_obj
def top_command(session: Session, once: bool, interval: float, order: str) -> None:
    """Show what all machines do, live: CPU, memory, disk, network, and whom they wait for.

    WAIT is the part of the time in which a machine could have run and did not, with LIMIT, in which its own
    cpu.limit held it; STALL that in which it waited for memory.

    Keys: n c u h m e i d r t p f w sort by a column, + and - double and halve a machine's disk.weight, s sets
    any knob, enter says why a machine waited, q ends.
    """
    if once or session.format != "table" or session.quiet or not sys.stdout.isatty():
        _print_once(session, interval, order)
        return
    from nagaya.top.screen import Top

    Top(session.client, interval, order).run()


def _print_once(session: Session, interval: float, order: str) -> None:
    """Rates need two looks."""
    from nagaya.top.columns import COLUMNS, ordered
    from nagaya.top.rows import rows

    before = session.client.usage()
    time.sleep(interval)
    found = ordered(rows(before, session.client.usage()), order)
    print_rows(session, [asdict(row) for row in found], [_column(column) for column in COLUMNS])


def _column(column: columns.Column) -> Column:
    from nagaya.top.rows import Row

    def value(row: Any) -> Any:
        return column.value(Row(**row))

    return Column(column.heading, value, column.human, column.right)
