"""Arguments that the shell completes: from a daemon that runs, with nothing quickly where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from nagaya.errors import NagayaError

if TYPE_CHECKING:
    from nagaya.sdk import Client


def machine_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Machines, except those that the line has already."""
    return _names(ctx, incomplete, lambda client: [machine.name for machine in client.machines.list()])


def shared_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Machines, and tenants after an @."""
    if incomplete.startswith("@"):
        return _names(ctx, incomplete, lambda client: [f"@{one.name}" for one in client.tenants.list()])
    return machine_names(ctx, _param, incomplete)


def setting_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Fields that are set often, with their `=`."""
    disk = ("weight", "reservation", "limit", "latency_p99")
    fields = [f"{where}.{knob}" for where in ("disk", "disks[0].share") for knob in disk]
    fields += ["cpu.weight", "cpu.limit", "cpu.reservation", "cpu.pin", "tenant", "restart", "autostart"]
    fields += [f"memory.{knob}" for knob in ("weight", "limit", "reservation", "size", "huge", "node")]
    return [f"{field}=" for field in fields if field.startswith(incomplete)]


def host_setting_names(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Fields of the host's policy, with their `=`."""
    fields = [f"{part}.{name}" for part in ("cpu", "memory") for name in ("overcommit", "kept")]
    return [f"{field}=" for field in fields if field.startswith(incomplete)]


def image_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Images."""
    return _names(ctx, incomplete, lambda client: [image.name for image in client.images.list()])


def disk_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Disks."""
    return _names(ctx, incomplete, lambda client: [disk.name for disk in client.disks.list()])


def network_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Networks."""
    return _names(ctx, incomplete, lambda client: [network.name for network in client.networks.list()])


def group_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Security groups."""
    return _names(ctx, incomplete, lambda client: [group.name for group in client.groups.list()])


def _names(ctx: click.Context, incomplete: str, ask: Callable[[Client], list[str]]) -> list[str]:
    from nagaya.sdk import Client

    try:
        with Client() as client:
            names = ask(client)
    except NagayaError:
        return []
    taken = set(ctx.params.get("names") or ())
    return [name for name in names if name.startswith(incomplete) and name not in taken]


name_argument = click.argument("name", shell_complete=machine_names)
names_argument = click.argument("names", nargs=-1, metavar="NAME...", shell_complete=machine_names)
machine_argument = click.argument("machine", shell_complete=machine_names)
nic_option = click.option("--nic", default="net0", metavar="NIC", help="Which one (net0).")
