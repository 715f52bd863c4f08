"""What a network needs of the host: which interfaces lead to the world, which settings, which rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nagaya.errors import ConflictError
from nagaya.networks import sysctls
from nagaya.networks.config import Forward, Reservation
from nagaya.networks.links import Interface, Link, Links, Range, Route
from nagaya.networks.names import METADATA_PORT, Names
from nagaya.networks.rules import Area, Closed
from nagaya.spec import NetworkSpec

_ROUTED = ("nat", "routed")


@dataclass(frozen=True, slots=True)
class Record:
    """All that a network should be on the host."""

    spec: NetworkSpec
    reservations: tuple[Reservation, ...] = ()
    forwards: tuple[Forward, ...] = ()

    @property
    def has_tap(self) -> bool:
        """Whether the host takes part: an isolated network without addresses is the plane's alone."""
        spec = self.spec
        if spec.mode == "isolated":
            return (spec.dhcp or spec.dns) and bool(spec.ipv4 or spec.ipv6)
        return spec.mode in (*_ROUTED, "bridge")

    @property
    def routed(self) -> bool:
        """Whether the host forwards packets between it and the world."""
        return self.spec.mode in _ROUTED

    @property
    def served(self) -> bool:
        """Whether the host has an address in it."""
        return self.has_tap and self.spec.mode != "bridge"

    @property
    def needs_dnsmasq(self) -> bool:
        """Whether machines ask the host for addresses or names."""
        return self.served and (self.spec.dhcp or self.spec.dns)

    @property
    def needs_metadata(self) -> bool:
        """Whether a machine of it can ask who it is."""
        return self.served and any(one.instance is not None for one in self.reservations)

    def addresses(self) -> list[Interface]:
        """Those of the host, the first of each range."""
        if not self.served:
            return []
        ranges = [ipaddress.ip_network(text) for text in (self.spec.ipv4, self.spec.ipv6) if text]
        return [ipaddress.ip_interface(f"{one[1]}/{one.prefixlen}") for one in ranges]


def ways_out(record: Record, links: Sequence[Link], routes: Iterable[Route]) -> tuple[str, ...]:
    """The host's interfaces behind which a network's world is: its uplink, or all that lead to a router."""
    spec = record.spec
    if not record.routed:
        return ()
    if spec.uplink:
        return (spec.uplink,)
    tunnels = {link.name for link in links if link.point_to_point}
    names = {
        route.interface
        for route in routes
        if route.gateway or route.destination.prefixlen == 0 or route.interface in tunnels
    }
    return tuple(sorted(name for name in names if _is_way(name)))


def _is_way(name: str) -> bool:
    """Not ours, and one that nft can name: the kernel allows quotes and stars in names of interfaces."""
    return bool(name) and name != "lo" and not name.startswith("ngy-") and not set(name) & set('"*\\')


def area(record: Record, names: Names, ways: tuple[str, ...]) -> Area:
    """The network as the packet filter sees it."""
    spec = record.spec
    return Area(
        name=spec.name,
        interface=names.interface(spec.name),
        ipv4=spec.ipv4,
        ipv6=spec.ipv6,
        outbound=record.routed,
        inbound=spec.mode == "routed",
        masquerade=spec.mode == "nat",
        dhcp=spec.dhcp,
        dns=spec.dns,
        metadata_port=METADATA_PORT,
        uplinks=ways,
        forwards=record.forwards,
    )


def own_settings(record: Record, interface: str) -> dict[str, str]:
    """Settings of the network's own interface: they go away with it."""
    routed = "1" if record.routed else "0"
    localhost = any(":" not in forward.machine_address for forward in record.forwards)
    return {
        f"ipv4/conf/{interface}/forwarding": routed,
        f"ipv4/conf/{interface}/route_localnet": "1" if localhost else "0",
        f"ipv6/conf/{interface}/forwarding": routed,
        f"ipv6/conf/{interface}/force_forwarding": routed,
    }


def host_settings(areas: Iterable[Area]) -> dict[str, str]:
    """Settings of the host's interfaces without which nothing would be forwarded.

    IPv6 is forwarded from one interface since Linux 6.17 (`force_forwarding`); before, only from all of them,
    which makes the host a router that ignores other routers unless `accept_ra` is 2.
    """
    wanted: dict[str, str] = {}
    for one in areas:
        for name in one.uplinks:
            if one.ipv4:
                wanted[f"ipv4/conf/{name}/forwarding"] = "1"
            if one.ipv6 and sysctls.has("ipv6/conf/all/force_forwarding"):
                wanted[f"ipv6/conf/{name}/force_forwarding"] = "1"
            elif one.ipv6 and sysctls.has("ipv6/conf/all/forwarding"):
                if sysctls.read(f"ipv6/conf/{name}/accept_ra") in ("1", "2"):
                    wanted[f"ipv6/conf/{name}/accept_ra"] = "2"
                wanted["ipv6/conf/all/forwarding"] = "1"
    return wanted


def closed(wanted: Mapping[str, str], settings: sysctls.Sysctls) -> Closed:
    """The interfaces that would forward nothing if `wanted` had not been asked for."""

    def of(family: str, switches: Sequence[str]) -> frozenset[str]:
        if settings.before(f"{family}/conf/all/forwarding") == "1":
            return frozenset()
        found = set()
        for setting in wanted:
            parts = setting.split("/")
            if parts[0] == family and parts[3] in switches and settings.before(setting) == "0":
                found.add(parts[2])
        return frozenset(found)

    return Closed(of("ipv4", ["forwarding"]), of("ipv6", ["force_forwarding", "forwarding"]))


def check_ranges(record: Record, names: Names, links: Links, others: Iterable[Record]) -> None:
    """Nobody else uses the ranges of a new network. Raises `ConflictError` that says who does."""
    spec = record.spec
    ranges = [ipaddress.ip_network(text) for text in (spec.ipv4, spec.ipv6) if text]
    for other in others:
        for text in filter(None, (other.spec.ipv4, other.spec.ipv6)):
            for one in ranges:
                _check(spec, one, ipaddress.ip_network(text), f"network {other.spec.name}")
    own = names.interface(spec.name)
    for route in links.routes():
        if route.interface != own and route.destination.prefixlen > 0 and not route.destination.is_link_local:
            for one in ranges:
                _check(spec, one, route.destination, f"a route of the host through {route.interface}")


def _check(spec: NetworkSpec, own: Range, other: Range, whose: str) -> None:
    if own.version == other.version and own.overlaps(other):
        raise ConflictError(
            f"network {spec.name}: {own} overlaps {other}, {whose}",
            hint="choose another range",
            network=spec.name,
            range=str(own),
            other=str(other),
        )
