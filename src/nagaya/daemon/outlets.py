"""Networks of mode `user`: each NIC of a machine that runs has a way out of its own, which only it uses.

The network's lock is held by callers; everything may be done twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nagaya.daemon.networks import Network
from nagaya.daemon.nics import Plug, forwards_of, plugs, reservations_of
from nagaya.daemon.state import MachineRow
from nagaya.daemon.supervised import ALIVE, Supervised
from nagaya.errors import NagayaError, NotFoundError
from nagaya.networks.passt import answered_for
from nagaya.plane.config import UplinkDevice

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

log = logging.getLogger("nagaya.daemon")


class Outlets:
    """Connects NICs with the programs that are their ways out."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._networks = supervisor.networks
        self._plane = supervisor.parts.plane
        self._private = supervisor.networks.host.private
        self._private.restarted = self._reconnect

    def owns(self, device_id: str) -> bool:
        """Whether a device of the plane is the way out of a NIC that is to have one."""
        return any(device_id == outlet_id(one, plug) for _, one, plug in self._all())

    async def connect(self, network: Network, machine_id: str | None = None) -> None:
        """The NICs of a machine on `network` have their ways out; those of all that run if it is None.

        Raises what the first one that cannot says; of all machines, it is logged.
        """
        for where, one, plug in self._all():
            if where is not network or machine_id not in (None, one.row.id):
                continue
            try:
                await self._connect(network, one, plug)
            except NagayaError as error:
                if machine_id is not None:
                    raise
                log.error("%s has no way out of network %s: %s", one.name, network.name, error.message)

    async def disconnect(self, network: Network, row: MachineRow, first: int = 0) -> None:
        """The NICs of a machine on `network`, from number `first`, have none any more."""
        for number, nic in enumerate(row.nics):
            if number >= first and nic.network == network.name and network.spec.mode == "user":
                network.private.pop(nic.mac, None)
                await self._private.remove(nic.mac)
                with contextlib.suppress(NotFoundError):
                    await self._plane.device_del(f"%{row.id}/net{number}")

    async def sweep(self) -> None:
        """After a daemon's death: nothing is left of NICs that need none."""
        await self._private.sweep([plug.row.mac for _, _, plug in self._all()])

    def _all(self) -> Iterator[tuple[Network, Supervised, Plug]]:
        for network in self._networks.all():
            users = self._networks.users(network.name, alive=True) if network.spec.mode == "user" else ()
            for one in users:
                for plug in plugs(one.spec, one.row.nics):
                    if plug.row.network == network.name:
                        yield network, one, plug

    async def _connect(self, network: Network, one: Supervised, plug: Plug) -> None:
        found = reservations_of(one, network.name)
        reservation = next(each for each in found if each.mac == plug.row.mac)
        nics = plugs(one.spec, one.row.nics)
        forwards = [
            forward
            for forward in forwards_of(one.name, one.spec, nics, network.name)
            if forward.machine_address in plug.addresses
        ]
        uplink, fresh = await self._private.ensure(network.spec, reservation, forwards)
        device = UplinkDevice(
            outlet_id(one, plug),
            network.name,
            "stream",
            path=uplink.path,
            port=f"{one.row.id}/{plug.name}",
            addresses=answered_for(network.spec),
            rate=network.spec.rate or 0,
        )
        if fresh:
            with contextlib.suppress(NotFoundError):
                await self._plane.device_del(device.id)
        pid = self._plane.pid()
        if fresh or pid is None or network.private.get(plug.row.mac) != pid:
            if fresh or device.id not in await self._plane.device_ids():
                await self._plane.device_add(device)
            network.private[plug.row.mac] = self._plane.pid()

    async def _reconnect(self, mac: str) -> None:
        for network, one, plug in self._all():
            if plug.row.mac == mac:
                async with network.lock:
                    if one.row.state in ALIVE:
                        with contextlib.suppress(NotFoundError):
                            await self._plane.device_del(outlet_id(one, plug))
                        network.private.pop(mac, None)
                        await self._connect(network, one, plug)
                return


def outlet_id(one: Supervised, plug: Plug) -> str:
    """The plane's name of a NIC's own way out."""
    return f"%{one.row.id}/{plug.name}"
