"""`nagaya plan`: how many machines more fit this host, what breaks first, and which could share one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_names
from nagaya.cli.output import Column, Row, field, print_rows, print_value
from nagaya.cli.quantities import TIME
from nagaya.cli.session import Session
from nagaya.errors import UsageError
from nagaya.units import human_size, human_time


def _amount(name: str) -> Column:
    def human(pair: Any) -> str:
        unit, value = pair
        if value is None:
            return "-"
        if unit == "CPUs":
            return f"{value:.2f}"
        return human_size(value) + ("/s" if unit == "bytes/s" else "")

    def value(row: Row) -> Any:
        return row["unit"], row[name]

    return Column(name.upper(), value, human, right=True)


def _notes(row: Row) -> Iterator[str]:
    if row["worst_p99_us"] > row["worst_bound_us"]:
        yield "too slow"
    if row["guessed"]:
        yield "guessed"


ROOM_COLUMNS = (
    Column("RESOURCE", field("resource")),
    Column("OF", field("name")),
    Column("BUSIEST", lambda row: "" if row["name"] == "promised" else f"{row['hour']:02}:00 UTC"),
    _amount("used"),
    _amount("each"),
    _amount("limit"),
    Column("FITS", field("fits"), right=True),
)
ROW_COLUMNS = (
    Column("DISK", field("disk")),
    Column("MORE", field("more"), right=True),
    Column("IOPS", field("iops"), lambda value: f"{value:.0f}", right=True),
    Column("P99", field("p99_us"), human_time, right=True),
    Column("WORST", field("worst")),
    Column("ITS P99", field("worst_p99_us"), human_time, right=True),
    Column("BOUND", field("worst_bound_us"), human_time, right=True),
    Column("NOTE", lambda row: ", ".join(_notes(row))),
)


@click.command("plan")
@click.option("--like", metavar="NAME", shell_complete=machine_names, help="How many more like this fit?")
@click.option("--most", type=click.IntRange(1, 1000), default=100, help="Look at no more than so many (100).")
@click.option("--p99", type=TIME, metavar="TIME", help="What any disk may take, 20ms.")
@click.option("--consolidate", is_flag=True, help="Which machines could share one host?")
@shared_options()
@click.pass_obj
def plan_command(session: Session, like: str | None, most: int, p99: int | None, consolidate: bool) -> None:
    """Say how many machines more fit this host, and what breaks first; nothing is changed.

    What machines asked for is recorded (`nagaya demand`); CPUs, memory and networks are added up hour by
    hour, disks are replayed through the arbiter in simulated time. What is not known of it is said.
    """
    if consolidate == (like is not None):
        raise UsageError(
            "plan takes one question: not none, not two", hint="give --like NAME, or --consolidate"
        )
    if like is None:
        _consolidate(session)
        return
    answer = asdict(session.client.plan(like, most=most, p99_us=p99))
    if session.quiet:
        click.echo(answer["fits"])
    elif session.format == "csv":
        print_rows(session, answer["rows"], ROW_COLUMNS)
    elif session.format != "table":
        print_value(session, answer)
    else:
        _say(answer)
        click.echo()
        print_rows(session, answer["rooms"], ROOM_COLUMNS)
        if answer["rows"]:
            click.echo()
            print_rows(session, answer["rows"], ROW_COLUMNS)
        _say_limits(answer)


def _consolidate(session: Session) -> None:
    answer = asdict(session.client.consolidation())
    rows = [{"host": number, **group} for number, group in enumerate(answer["groups"], 1)]
    if session.format not in ("table", "csv"):
        print_value(session, answer)
        return
    if session.format == "table" and not session.quiet:
        _say(answer)
        click.echo()
    columns = [
        Column("HOST", field("host"), right=True),
        *(_peak(resource, limit) for resource, limit in answer["rooms"].items()),
        Column("MACHINES", field("machines"), " ".join),
    ]
    print_rows(session, rows, columns, name="host")
    if session.format == "table" and not session.quiet:
        for what, names in (("too large for any", "too_large"), ("not recorded yet", "unknown")):
            if answer[names]:
                click.echo(f"{what}: {' '.join(answer[names])}")
        _say_limits(answer)


def _peak(resource: str, limit: float) -> Column:
    def human(pair: Any) -> str:
        value, hour = pair
        return f"{value / limit:.0%} at {hour:02}:00" if limit else "-"

    def value(row: Row) -> Any:
        return row["peaks"][resource], row["hours"][resource]

    return Column(resource.upper(), value, human, right=True)


def _say(answer: Mapping[str, Any]) -> None:
    first, *rest = answer["words"]
    click.echo(first)
    for line in rest:
        click.echo(f"  {line}")


def _say_limits(answer: Mapping[str, Any]) -> None:
    click.echo("\nWhat this does not know:")
    for line in answer["limits"]:
        click.echo(f"  {line}")
