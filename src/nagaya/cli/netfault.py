"""`nagaya network fault`: make the link of a machine lose, delay, double, reorder or cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_argument, machine_names, nic_option
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.quantities import PART, TIME
from nagaya.cli.session import Session
from nagaya.units import format_time

ALL = "all"


def describe(row: Mapping[str, Any]) -> str:
    """Faults in words: `loss 5%, delay 20ms, parted from db/net0`."""
    words = [f"{name} {100 * row[name]:g}%" for name in ("loss", "duplicate", "reorder") if row[name]]
    words += [f"{name} {format_time(row[f'{name}_us'])}" for name in ("delay", "jitter") if row[f"{name}_us"]]
    whom = row["partition"]
    if whom:
        words.append(f"parted from {'all' if whom is True else ' '.join(whom)}")
    return ", ".join(words)


_COLUMNS = (
    Column("NIC", field("nic")),
    Column("FAULTS", describe),
    Column("DROPPED", field("dropped"), right=True),
)


@click.command("fault")
@machine_argument
@nic_option
@click.option("--loss", type=PART, metavar="PART", help="Part of the frames that are lost: 5%, 0.05.")
@click.option(
    "--delay", "delay_us", type=TIME, metavar="TIME", help="Every frame is so long under way: 20ms."
)
@click.option(
    "--jitter", "jitter_us", type=TIME, metavar="TIME", help="And up to so much longer, at random, in order."
)
@click.option("--duplicate", type=PART, metavar="PART", help="Part of the frames that come twice.")
@click.option("--reorder", type=PART, metavar="PART", help="Part of the frames that others overtake.")
@click.option(
    "--partition",
    multiple=True,
    metavar="WHOM",
    shell_complete=machine_names,
    help="No frame to and from db, db/net1, uplink or all; may be repeated.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="The same faults again (0).")
@click.option("--clear", is_flag=True, help="End all faults of the NIC.")
@shared_options()
@click.pass_obj
def fault_command(session: Session, /, machine: str, nic: str, clear: bool, **options: Any) -> None:
    """Lay faults upon the link of a machine that runs, both ways, to test what runs in it.

    They take the place of those that are there, begin at once, and end with --clear or with the machine's
    run. Without an option, the machine's faults are shown.
    """
    networks = session.client.networks
    faults = {key: value for key, value in options.items() if value not in (None, ())}
    if "partition" in faults:
        faults["partition"] = True if ALL in faults["partition"] else list(faults["partition"])
    if clear and faults:
        raise click.UsageError("--clear ends all faults, it goes with --nic alone")
    if clear or faults:
        networks.set_faults(machine, nic, **faults)
        return
    print_rows(session, [asdict(one) for one in networks.faults(machine)], _COLUMNS, name="nic")
