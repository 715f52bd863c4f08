"""What is plugged into what: networks come up with the first machine on them and go down after the last one.

A network is told all machines that have an address of it, running or not, so that a start mostly changes
nothing on the host; forwards are those of machines that run. Everything may be done twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from nagaya.daemon.networks import Network
from nagaya.daemon.nics import Plug, forwards_of, plugs, reservations_of
from nagaya.daemon.outlets import Outlets
from nagaya.daemon.state import MachineRow
from nagaya.daemon.supervised import ALIVE, Supervised
from nagaya.engines.engine import Machine
from nagaya.errors import NagayaError, NotFoundError
from nagaya.networks.config import Forward, Reservation
from nagaya.networks.passt import resolvers
from nagaya.plane.config import Device, NetDevice, UplinkDevice
from nagaya.plane.ports import PortRules, SecurityRow
from nagaya.spec import NetworkSpec, SecurityGroup
from nagaya.traffic import parse_rule

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

STORM_PPS = 1000  # broadcasts and the like that a port may send in a second: ARP and DHCP need a few
METADATA = "169.254.169.254/32"

log = logging.getLogger("nagaya.daemon")


class Cabling:
    """Plugs the machines of a daemon into its networks."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._networks = supervisor.networks
        self._plane = supervisor.parts.plane
        self._outlets = Outlets(supervisor)

    def devices(self, row: MachineRow, machine: Machine) -> list[NetDevice]:
        """The ports that the plane has for a machine."""
        devices = []
        for plug in plugs(machine.spec, row.nics):
            network = self._networks.get(plug.row.network)
            devices.append(
                NetDevice(
                    id=f"{row.id}/{plug.name}",
                    socket=str(machine.paths.device_socket(plug.name)),
                    uid=machine.uid,
                    gid=machine.gid,
                    network=network.name,
                    mac=plug.row.mac,
                    mtu=network.uplink.mtu if network.uplink else network.spec.mtu,
                    queues=plug.spec.queues,
                    link=plug.row.link,
                    rules=self.rules(plug, network.spec),
                )
            )
        return devices

    def rules(self, plug: Plug, network: NetworkSpec) -> PortRules:
        """What a NIC may send, and who may talk with it."""
        groups = [self._supervisor.groups.get(name) for name in plug.spec.groups]
        return PortRules(
            addresses=plug.addresses if network.addressed else (),
            spoof=plug.spec.spoof,
            isolated=plug.spec.isolated,
            vlan=plug.spec.vlan,
            storm_pps=STORM_PPS,
            groups=plug.spec.groups,
            security=(*_basics(network), *_rows(groups)) if groups else None,
        )

    def owns(self, device_id: str) -> bool:
        """Whether a device of the plane is the uplink of a network that a machine uses."""
        return self._outlets.owns(device_id) or any(
            uplink_id(network.name) == device_id and self._networks.users(network.name, alive=True)
            for network in self._networks.all()
        )

    async def plug(self, row: MachineRow) -> None:
        """Have the networks of a machine that starts up, and its ports of the host open."""
        for network in self._networks_of(row):
            async with network.lock:
                await self._bring_up(network)
                await self._outlets.connect(network, row.id)

    async def unplug(self, row: MachineRow) -> None:
        """The machine's devices are gone: close its ports; a network that nobody uses goes."""
        for network in self._networks_of(row):
            async with network.lock:
                try:
                    await self._outlets.disconnect(network, row)
                    await self._let_go(network, row.id)
                except NagayaError as error:  # the machine has ended all the same; the next change mends it
                    log.error("network %s: %s", network.name, error)

    async def leave(self, row: MachineRow, gone: Plug) -> None:
        """The last NIC of `row` is gone from a machine that runs on, and whose row is without it now."""
        network = self._networks.get(gone.row.network)
        async with network.lock:
            await self._outlets.disconnect(network, row, len(row.nics) - 1)
            if self._networks.users(network.name, alive=True):
                await self._bring_up(network)
            else:
                await self._let_go(network, row.id)

    async def renew(self) -> None:
        """After a daemon's death: have everything as it is to be, and nothing of networks nobody uses."""
        used = [one for one in self._networks.all() if self._networks.users(one.name, alive=True)]
        await self._networks.host.sweep([network.name for network in used])
        await self._outlets.sweep()
        for network in used:
            async with network.lock:
                try:
                    await self._bring_up(network)
                    await self._outlets.connect(network)
                except NagayaError as error:
                    log.error("network %s: %s", network.name, error)

    async def recheck(self, row: MachineRow, machine: Machine, told: Iterable[Device]) -> None:
        """A group may have changed while the plane was told of the machine's ports."""
        before = {device.id: device for device in told}
        for device in self.devices(row, machine):
            if device != before.get(device.id):
                await self._plane.set_port(device.id, device.rules, link=device.link)

    async def retell(self, only: Callable[[Plug], bool], machines: Iterable[Supervised] = ()) -> None:
        """Tell the plane the rules of ports of machines that run, of all if `machines` is empty."""
        for one in machines or self._supervisor.all():
            for plug in plugs(one.spec, one.row.nics) if one.row.state in ALIVE else ():
                if only(plug):
                    rules = self.rules(plug, self._networks.get(plug.row.network).spec)
                    with contextlib.suppress(NotFoundError):  # it ends, or has not begun
                        await self._plane.set_port(f"{one.row.id}/{plug.name}", rules, link=plug.row.link)

    # -- helpers; the network's lock is held

    async def _bring_up(self, network: Network, but: str = "") -> None:
        told = (network.spec, self._reservations(network), self._forwards(network, but))
        if network.uplink is None or network.told != told:
            try:
                network.uplink = await self._networks.host.ensure(*told)
            except NagayaError as error:
                network.cause = error.message
                raise
            network.told, network.cause = told, ""
            self._networks.publish("network", network)
        await self._serve_uplink(network)

    async def _serve_uplink(self, network: Network) -> None:
        uplink = network.uplink
        if uplink is None or uplink.kind == "none":
            return
        device = UplinkDevice(
            uplink_id(network.name),
            network.name,
            uplink.kind,
            interface=uplink.interface,
            path=uplink.path,
            rate=network.spec.rate or 0,
        )
        pid = self._plane.pid()
        if pid is None or network.served_by != pid:
            if device.id not in await self._plane.device_ids():
                await self._plane.device_add(device)
            network.served_by = self._plane.pid()

    async def _let_go(self, network: Network, machine_id: str) -> None:
        if network.uplink is None and not network.cause:
            return
        if any(one.row.id != machine_id for one in self._networks.users(network.name, alive=True)):
            await self._bring_up(network, but=machine_id)
            return
        with contextlib.suppress(NotFoundError):
            await self._plane.device_del(uplink_id(network.name))
        await self._networks.host.remove(network.name)
        network.uplink = network.told = network.served_by = None
        self._networks.publish("network", network)

    def _networks_of(self, row: MachineRow) -> list[Network]:
        return [self._networks.get(name) for name in sorted({nic.network for nic in row.nics})]

    def _reservations(self, network: Network) -> tuple[Reservation, ...]:
        users = self._networks.users(network.name)
        return tuple(found for one in users for found in reservations_of(one, network.name))

    def _forwards(self, network: Network, but: str) -> tuple[Forward, ...]:
        if network.spec.mode == "user":
            return ()
        users = self._networks.users(network.name, alive=True)
        return tuple(
            forward
            for one in users
            if one.row.id != but
            for forward in forwards_of(one.name, one.spec, plugs(one.spec, one.row.nics), network.name)
        )


def _rows(groups: Iterable[SecurityGroup]) -> Iterator[SecurityRow]:
    for group in groups:
        for text in group.inbound:
            rule = parse_rule(text)
            yield SecurityRow("in", rule.protocol, rule.ports, rule.peer)
        for text in group.outbound:
            rule = parse_rule(text)
            yield SecurityRow("out", rule.protocol, rule.ports, rule.peer)


def _basics(network: NetworkSpec) -> Iterator[SecurityRow]:
    """Without which a guest does not even come up: DHCP, names, and what cloud-init asks for."""
    if network.dhcp:
        yield SecurityRow("out", "udp", (67, 67))
        yield SecurityRow("out", "udp", (547, 547))
        yield SecurityRow("out", "tcp", (80, 80), METADATA)
    servers = resolvers() if network.mode == "user" else (network.gateway4, network.gateway6)
    for server in filter(None, servers) if network.dns and network.addressed else ():
        bits = 128 if ":" in server else 32
        yield SecurityRow("out", "udp", (53, 53), f"{server}/{bits}")
        yield SecurityRow("out", "tcp", (53, 53), f"{server}/{bits}")


def uplink_id(network: str) -> str:
    """The plane's name of a network's way out."""
    return f"%{network}/uplink"
