"""What the NICs of a machine have of their networks: chosen when it is made, kept until it is deleted.

It is decided in one step of the event loop, from what all machines have, so that nothing is given twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nagaya.daemon.state import NicRow
from nagaya.errors import ConflictError
from nagaya.models.network import NicInfo
from nagaya.networks.config import Forward, Instance, Reservation
from nagaya.resources.addresses import choose_ipv4, choose_ipv6, choose_mac, interface_id
from nagaya.spec import MachineSpec, NetworkSpec, Nic
from nagaya.traffic import parse_forward

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised

MAIN = "default"  # the network of machines that name none


@dataclass(frozen=True, slots=True)
class Plug:
    """One NIC of a machine: what was asked for, and what it has."""

    name: str  # "net0"
    spec: Nic
    row: NicRow

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that are its own, IPv4 first."""
        return tuple(address for address in (self.row.ipv4, self.row.ipv6) if address)


def wanted_nics(spec: MachineSpec, *, network: str) -> tuple[Nic, ...]:
    """The NICs that a new machine gets. One that names none has one on `network`; "" is none."""
    if spec.nics is not None:
        return spec.nics
    return (Nic(network=network),) if network else ()


def plugs(spec: MachineSpec, rows: Sequence[NicRow]) -> tuple[Plug, ...]:
    """The NICs of a machine that is there."""
    asked = (Nic(network=row.network) for row in rows) if spec.nics is None else spec.nics
    return tuple(Plug(f"net{n}", nic, row) for n, (nic, row) in enumerate(zip(asked, rows, strict=True)))


def nic_infos(spec: MachineSpec, rows: Sequence[NicRow]) -> list[NicInfo]:
    """What the API says of them."""
    return [
        NicInfo(
            name=plug.name,
            network=plug.row.network,
            mac=plug.row.mac,
            ipv4=plug.row.ipv4,
            ipv6=plug.row.ipv6,
            link=plug.row.link,
            groups=list(plug.spec.groups),
        )
        for plug in plugs(spec, rows)
    ]


def reservations_of(one: Supervised, network: str) -> Iterator[Reservation]:
    """The addresses of a machine's NICs on `network`, and the names that they have there."""
    mine = [plug for plug in plugs(one.spec, one.row.nics) if plug.row.network == network]
    for number, plug in enumerate(mine):
        yield Reservation(
            machine=one.name,
            mac=plug.row.mac,
            ipv4=plug.row.ipv4,
            ipv6=plug.row.ipv6,
            hostname=f"{one.name}-{plug.name}" if number else one.name,
            instance=Instance(one.row.id),
        )


def forwards_of(name: str, spec: MachineSpec, nics: Sequence[Plug], network: str) -> Iterator[Forward]:
    """The ports of the host that lead to a machine through `network`: to its first NIC with an address."""
    first = next((plug for plug in nics if plug.addresses), None)
    if first is None or first.row.network != network:
        return
    for forward in map(parse_forward, spec.ports):
        for address in first.addresses:
            if forward.host_address and (":" in forward.host_address) is not (":" in address):
                continue
            yield Forward(
                protocol=forward.protocol,
                host_address=forward.host_address,
                host_port=forward.host_port,
                machine_address=address,
                machine_port=forward.machine_port,
                machine=name,
            )


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose NICs are to be given addresses: a machine that may have some already."""

    id: str
    name: str
    rows: tuple[NicRow, ...] = ()


class Allotter:
    """Gives addresses. `networks` knows the networks by name, `seed` is this host's, `strangers` its MACs."""

    def __init__(self, networks: Callable[[str], NetworkSpec], seed: str, strangers: frozenset[str]) -> None:
        self._networks = networks
        self._seed = seed
        self._strangers = strangers

    def allot(self, owner: Owner, nics: Sequence[Nic], others: Iterable[Owner]) -> tuple[NicRow, ...]:
        """What each of `nics` has. One that is as it was, at its old place, keeps what it has.

        `others` are all other machines. Raises `SpecError`, `ConflictError` or `ResourceError`.
        """
        others = list(others)
        rows: list[NicRow] = []
        for place, nic in enumerate(nics):
            before = owner.rows[place] if place < len(owner.rows) else None
            if before is not None and _suits(before, nic):
                rows.append(before)
                continue
            taken = [*others, Owner(owner.id, owner.name, (*rows, *owner.rows[place + 1 :]))]
            rows.append(self._choose(owner, place, nic, taken))
        return tuple(rows)

    def _choose(self, owner: Owner, place: int, nic: Nic, taken: Sequence[Owner]) -> NicRow:
        network = self._networks(nic.network)
        macs = self._strangers.union(row.mac for row, _ in _rows(taken))
        if nic.mac:
            _require_mac(nic.mac, taken)
        mac = nic.mac or choose_mac(f"{self._seed}/{owner.id}/{place}", macs)
        if not network.addressed:
            return NicRow(network.name, mac, nic.ipv4, nic.ipv6)
        here = [(row, name) for row, name in _rows(taken) if row.network == network.name]
        ipv4 = ipv6 = ""
        if network.ipv4:
            holders = {row.ipv4: name for row, name in here if row.ipv4}
            ipv4 = choose_ipv4(network.name, network.ipv4, owner.name, nic.ipv4, holders)
        if network.ipv6:
            near = interface_id(mac)
            holders = {row.ipv6: name for row, name in here if row.ipv6}
            ipv6 = choose_ipv6(network.name, network.ipv6, owner.name, nic.ipv6, holders, near=near)
        return NicRow(network.name, mac, ipv4, ipv6)


def _suits(row: NicRow, nic: Nic) -> bool:
    wishes = ((nic.mac, row.mac), (nic.ipv4, row.ipv4), (nic.ipv6, row.ipv6))
    return row.network == nic.network and all(wish in ("", has) for wish, has in wishes)


def _rows(owners: Iterable[Owner]) -> Iterator[tuple[NicRow, str]]:
    return ((row, owner.name) for owner in owners for row in owner.rows)


def _require_mac(mac: str, taken: Iterable[Owner]) -> None:
    for row, name in _rows(taken):
        if row.mac == mac:
            raise ConflictError(f"{mac} is the MAC address of {name}", hint="leave it out, and one is chosen")
