"""`nagaya network flows`: the connections of a NIC."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.complete import machine_argument, nic_option
from nagaya.cli.output import Column, field, print_rows
from nagaya.cli.session import Session
from nagaya.units import human_size, human_time

SECOND_LOOK_S = 1.0  # after a first question that began the counting


def _end(row: Mapping[str, Any], side: str) -> str:
    address, port = row[side], row[f"{side}_port"]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


_COLUMNS = (
    Column("PROTOCOL", field("protocol")),
    Column("LOCAL", lambda row: _end(row, "local")),
    Column("", lambda row: {"out": "->", "in": "<-"}[row["direction"]]),
    Column("REMOTE", lambda row: _end(row, "remote")),
    Column("MACHINE", field("machine")),
    Column("STATE", field("state")),
    Column("RECEIVED", field("rx_bytes"), human_size, right=True),
    Column("SENT", field("tx_bytes"), human_size, right=True),
    Column("AGE", lambda row: 1000 * row["age_ms"], human_time, right=True),
    Column("IDLE", lambda row: 1000 * row["idle_ms"], human_time, right=True),
)


@click.command("flows")
@machine_argument
@nic_option
@click.option("--limit", type=click.IntRange(1, 128), default=20, metavar="N", help="How many (20).")
@shared_options()
@click.pass_obj
def flows_command(session: Session, machine: str, nic: str, limit: int) -> None:
    """Show the connections of MACHINE with the most bytes: who began them, and what went through.

    Those of a NIC without security groups are counted for a minute from the first time that somebody asks.
    """
    ask = session.client.networks.flows
    found = ask(machine, nic, limit=limit)
    if not found:
        time.sleep(SECOND_LOOK_S)
        found = ask(machine, nic, limit=limit)
    print_rows(session, [asdict(one) for one in found], _COLUMNS, name="remote")
