"""`nagaya disk fault`: make a disk slow, faulty, stuck or full, and see what the guest makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import name_argument
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.quantities import PART, TIME
from nagaya.cli.session import Session
from nagaya.units import format_time


def describe(row: Mapping[str, Any]) -> str:
    """Faults in words: `latency 5ms, errors 0.01 (EIO), for read`."""
    words = [name for name in ("stuck", "full") if row[name]]
    words += [
        f"{name} {format_time(row[f'{name}_us'])}" for name in ("latency", "jitter") if row[f"{name}_us"]
    ]
    words += [f"errors {row['error_rate']:g} ({row['error']})"] * bool(row["error_rate"])
    words += [f"torn writes {row['torn_write_rate']:g}"] * bool(row["torn_write_rate"])
    words += [f"for {' '.join(row['operations'])}"] * bool(row["operations"])
    return ", ".join(words)


_COLUMNS = (
    Column("DISK", field("disk"), right=True),
    Column("FAULTS", describe),
    Column("MET", field("faulted"), right=True),
)


@click.command("fault")
@name_argument
@click.option("--disk", type=click.IntRange(0, 63), default=0, metavar="N", help="Which disk, from 0 (0).")
@click.option("--latency", "latency_us", type=TIME, metavar="TIME", help="Every request waits so long: 5ms.")
@click.option("--jitter", "jitter_us", type=TIME, metavar="TIME", help="And up to so much longer, at random.")
@click.option("--error-rate", type=PART, metavar="RATE", help="Part of the requests that fail: 1%, 0.01.")
@click.option(
    "--error",
    type=click.Choice(["EIO", "ENOSPC"]),
    help="How: told to the guest, or waiting as on a full host (EIO).",
)
@click.option(
    "--torn-write-rate", type=PART, metavar="RATE", help="Part of the writes that fail half-written."
)
@click.option("--stuck", is_flag=True, default=None, help="No request is answered.")
@click.option("--full", is_flag=True, default=None, help="Writes find no space on the host, and wait.")
@click.option(
    "--operation",
    "operations",
    type=click.Choice(["read", "write", "flush", "discard"]),
    multiple=True,
    help="Only these; may be repeated.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The same faults again (0).")
@click.option("--clear", is_flag=True, help="End all faults of the disk.")
@shared_options()
@click.pass_obj
def fault_command(session: Session, /, name: str, disk: int, clear: bool, **options: Any) -> None:
    """Lay faults upon a disk of a machine that runs, to test what runs in it.

    They take the place of those that are there, begin at once, and end with --clear or with the machine's
    run. Without an option, the machine's faults are shown.
    """
    machine = session.client.machines.named(name)
    faults = {key: value for key, value in options.items() if value not in (None, ())}
    if clear and faults:
        raise click.UsageError("--clear ends all faults, it goes with --disk alone")
    if clear or faults:
        machine.set_faults(disk, **faults)
        return
    print_rows(session, [asdict(one) for one in machine.faults()], _COLUMNS)
