"""`nagaya network`: what machines are plugged into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from nagaya.cli.app import shared_options
from nagaya.cli.capture import capture_command
from nagaya.cli.complete import machine_argument, network_names, nic_option
from nagaya.cli.flows import flows_command
from nagaya.cli.machines import moment
from nagaya.cli.netfault import fault_command
from nagaya.cli.output import Column, field, print_rows, print_value
from nagaya.cli.session import Session
from nagaya.cli.set import CHANGE_COLUMNS
from nagaya.cli.traffic import Traffic, dropped_words
from nagaya.settings import parse
from nagaya.units import human_size

_COLUMNS = (
    Column("NAME", field("name")),
    Column("MODE", field("mode")),
    Column("STATE", field("state")),
    Column("IPV4", field("ipv4")),
    Column("IPV6", field("ipv6")),
    Column("UPLINK", field("uplink")),
    Column("MACHINES", lambda row: len({one["machine"] for one in row["addresses"]}), right=True),
    Column("CAUSE", field("cause")),
)

_PORTS = (
    Column("PORT", field("id")),
    Column("NETWORK", field("network")),
    Column("MAC", field("mac")),
    Column("LINK", lambda row: "up" if row["link"] else "down"),
    Column("RECEIVED", field("rx_packets"), right=True),
    Column("BYTES", field("rx_bytes"), human_size, right=True),
    Column("SENT", field("tx_packets"), right=True),
    Column("BYTES", field("tx_bytes"), human_size, right=True),
    Column("DROPS", lambda row: ", ".join(dropped_words(row["drops"]))),
)
_MODES = ("nat", "routed", "bridge", "isolated", "macvtap", "user")

_network = click.argument("network", shell_complete=network_names)
_plain = shared_options(session_formats=False)


@click.group("network")
def network_command() -> None:
    """Networks: make and remove them, plug machines in, and see what goes through.

    A machine that names no network is on `default`, which is made at its first use: behind the host's
    address (NAT), with DHCP and names like db.nagaya.internal.
    """


network_command.add_command(capture_command)
network_command.add_command(fault_command)
network_command.add_command(flows_command)


@network_command.command("list")
@shared_options()
@click.pass_obj
def _list(session: Session) -> None:
    """List all networks."""
    rows = [asdict(one) for one in session.client.networks.list()]
    columns = _COLUMNS if any(row["cause"] for row in rows) else _COLUMNS[:-1]
    print_rows(session, rows, columns)


@network_command.command("show")
@_network
@shared_options()
@click.pass_obj
def _show(session: Session, network: str) -> None:
    """Show all about one network: who has which address, what goes through its uplink, who waited for it."""
    facts = asdict(session.client.networks.get(network))
    if session.quiet:
        click.echo(facts["name"])
        return
    if session.format == "table":
        facts = _facts(facts, Traffic.of(session.client) if facts["state"] == "up" else None)
    print_value(session, facts)


def _facts(facts: dict[str, Any], traffic: Traffic | None) -> dict[str, Any]:
    """A network as people read it."""
    name, spec = facts["name"], facts.pop("spec")
    addresses = facts.pop("addresses")
    facts["created"] = moment(facts.pop("created_at"))
    facts |= {key: spec[key] for key in ("domain", "mtu", "vlan", "rate")}
    facts["machines"] = [
        " ".join(filter(None, (f"{one['machine']}/{one['nic']}", one["ipv4"], one["ipv6"], one["mac"])))
        for one in addresses
    ]
    facts["to and from the world"] = traffic.uplink(name) if traffic else None
    facts["waited in the last minute"] = traffic.waits(name) if traffic else None
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}


@network_command.command("create")
@click.argument("name")
@click.option("--mode", type=click.Choice(_MODES), help="Its way to the world (nat).")
@click.option("--ipv4", metavar="RANGE", help="10.78.0.0/24, or none (a range that is free).")
@click.option("--ipv6", metavar="PREFIX", help="fd12:3456:789a::/64, or none (one of its own).")
@click.option("--uplink", metavar="INTERFACE", help="Interface or bridge of the host.")
@click.option("--domain", metavar="NAME", help="Of the machines' names (nagaya.internal).")
@click.option("--mtu", type=int, metavar="BYTES", help="Size of a packet (1500).")
@click.option("--vlan", type=int, metavar="ID", help="VLAN of the bridge that `uplink` is, 1 to 4094.")
@click.option("--rate", metavar="RATE", help="What the uplink carries: 125MB/s.")
@click.option("--dhcp/--no-dhcp", default=None, help="Tell machines their addresses (yes).")
@click.option("--dns/--no-dns", default=None, help="Let machines find one another by name (yes).")
@_plain
@click.pass_obj
def _create(session: Session, /, name: str, **options: Any) -> None:
    """Make a network. It comes up with the first machine on it."""
    fields = {key: value for key, value in options.items() if value is not None}
    session.client.networks.create({"name": name, **fields})
    click.echo(name)


@network_command.command("set")
@_network
@click.argument("settings", nargs=-1, required=True, metavar="FIELD=VALUE...")
@click.option("--dry-run", is_flag=True, help="Check, and say what would change.")
@shared_options()
@click.pass_obj
def _set(session: Session, network: str, settings: Sequence[str], dry_run: bool) -> None:
    """Set fields of a network, all or none, while no machine on it runs.

    Its ranges, mode and uplink are set while no machine has an address of it.
    """
    pairs = [parse(setting) for setting in settings]
    answer = session.client.networks.set(network, pairs, dry_run=dry_run)
    if answer.changes or session.format != "table":
        print_rows(session, [asdict(change) for change in answer.changes], CHANGE_COLUMNS, name="field")
    elif not session.quiet:
        click.echo(f"{answer.name} has that already")


@network_command.command("ports")
@click.argument("name", metavar="NETWORK|MACHINE", shell_complete=network_names)
@shared_options()
@click.pass_obj
def _ports(session: Session, name: str) -> None:
    """Show the ports of a network, or of one machine: packets as the guest sees them, and drops by reason."""
    networks = session.client.networks
    known = any(one.name == name for one in networks.list())
    rows = networks.ports(name) if known else networks.ports_of(name)
    print_rows(session, [asdict(row) for row in rows], _PORTS, name="id")


@network_command.command("connect")
@machine_argument
@_network
@click.option("--ipv4", default="", metavar="ADDRESS", help="The address that it wants (a free one).")
@click.option("--ipv6", default="", metavar="ADDRESS", help="The same for IPv6.")
@click.option("--mac", default="", metavar="MAC", help="Its MAC address (one of its own).")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Security group; repeatable.")
@click.option("--isolated", is_flag=True, help="It reaches the world, and no other machine.")
@_plain
@click.pass_obj
def _connect(session: Session, /, machine: str, network: str, **nic: Any) -> None:
    """Give MACHINE one more NIC, on NETWORK. One that runs gets it at once, if its engine can."""
    nics = session.client.networks.connect(machine, network, **nic).nics
    addresses = " ".join(filter(None, (nics[-1]["ipv4"], nics[-1]["ipv6"])))
    _say(session, f"{machine} has {nics[-1]['name']} on {network} {addresses}".rstrip())


@network_command.command("disconnect")
@machine_argument
@click.argument("nic", metavar="NIC|NETWORK")
@_plain
@click.pass_obj
def _disconnect(session: Session, machine: str, nic: str) -> None:
    """Take a NIC away from MACHINE: net0, or the network that it is on.

    One that runs gives back its last one, if that came while it ran. The guest is asked to let go.
    """
    session.client.networks.disconnect(machine, nic)
    _say(session, f"{machine} is off {nic}")


@network_command.command("link")
@machine_argument
@click.argument("state", type=click.Choice(["up", "down"]))
@nic_option
@_plain
@click.pass_obj
def _link(session: Session, machine: str, state: str, nic: str) -> None:
    """Plug the cable of a NIC in, or pull it; a guest that runs sees it at once."""
    session.client.networks.set_link(machine, nic, up=state == "up")
    _say(session, f"{machine} {nic}: link {state}")


@network_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=network_names)
@_plain
@click.pass_obj
def _delete(session: Session, names: Sequence[str]) -> None:
    """Remove networks that no machine is on, and all of them that is on the host."""
    for name in names:
        session.client.networks.delete(name)
        _say(session, f"{name} is deleted")


def _say(session: Session, text: str) -> None:
    if not session.quiet:
        click.echo(text)
