"""`nagaya disk`: the disks of machines."""

from __future__ import annotations

import click

from nagaya.cli.fault import fault_command


@click.group("disk")
def disk_command() -> None:
    """Work with the disks of machines."""


disk_command.add_command(fault_command)
