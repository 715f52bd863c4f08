"""`nagaya demand`: what a machine asked of the host, hour by hour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.quantities import span
from nagaya.cli.session import Session
from nagaya.units import human_size

_SPAN = span(14 * 24 * 3600, "two weeks are kept")


def _cpus(thousandths: int) -> str:
    return f"{thousandths / 1000:.2f}"


def _rate(rate: int) -> str:
    return f"{human_size(rate)}/s"


def _columns(part: str) -> list[Column]:
    """The columns of one percentile; `part` is "" where rows are samples."""

    def of(name: str) -> Callable[[Any], Any]:
        return field(f"{name}.{part}" if part else name)

    return [
        Column("TIME", field("at"), lambda at: datetime.fromtimestamp(at).strftime("%m-%d %H:%M:%S")),
        Column("CPU", of("cpu"), _cpus, right=True),
        Column("MEMORY", of("memory"), human_size, right=True),
        Column("IOPS", of("iops"), right=True),
        Column("DISK", of("disk"), _rate, right=True),
        Column("RECV", of("received"), _rate, right=True),
        Column("SENT", of("sent"), _rate, right=True),
    ]


@click.command("demand")
@name_argument
@click.option("--since", type=_SPAN, default="24h", metavar="SPAN", help="90m, 24h, 336h at most (24h).")
@click.option(
    "--percentile",
    type=click.Choice(["p50", "p90", "p99", "max"]),
    default="p99",
    help="Of the samples of an hour (p99).",
)
@click.option("--samples", is_flag=True, help="The last hour, every ten seconds.")
@shared_options()
@click.pass_obj
def demand_command(session: Session, name: str, since: int, percentile: str, samples: bool) -> None:
    """Show what a machine asked of the host, hour by hour: CPUs, memory, disk, network.

    It is recorded while the machine runs, also by a daemon that is killed. `nagaya plan` replays it.
    """
    answer = asdict(session.client.machines.named(name).demand())
    rows = answer["samples" if samples else "hours"]
    newest = rows[-1]["at"] if rows else 0
    rows = [row for row in rows if row["at"] > newest - since]
    if session.format in ("json", "yaml"):
        print_value(session, {**answer, "samples" if samples else "hours": rows})
        return
    print_rows(session, rows, _columns("" if samples else percentile), name="at")
