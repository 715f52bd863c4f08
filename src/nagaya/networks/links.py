"""The interfaces of networks on the host, by netlink. Everything here blocks for milliseconds."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nagaya.abi import tun
from nagaya.errors import ConflictError, NagayaError, NotFoundError, PermissionDeniedError, UnsupportedError
from nagaya.networks import sysctls

_IFF_UP, _IFF_POINTOPOINT = 0x1, 0x10
_IFA_F_NODAD = 0x02
_MAIN_TABLE = 254
_UNICAST = 1  # RTN_UNICAST
_LINK_LOCAL = "fe80::1"  # of the host in every network: what router advertisements come from
_ADDR_GEN_MODE_NONE = "1"
_TABLE_RANGES = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))

Range = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the host."""

    index: int
    name: str
    alias: str
    mtu: int
    kind: str  # "bridge", "macvtap", "tun", ...; "" of hardware
    vlans: bool  # a bridge that knows VLANs
    master: int  # index of the bridge or bond that it is part of; 0: none
    up: bool
    point_to_point: bool  # one neighbour only: a tunnel


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the host's main table."""

    destination: Range
    interface: str
    gateway: bool  # to a router, not to neighbours


class Links:
    """A connection to the kernel's tables of interfaces, addresses and routes, of this network namespace."""

    def __init__(self, netlink: Any) -> None:
        self._netlink = netlink

    def all(self) -> list[Link]:
        """Every interface."""
        return [_link(message) for message in self._netlink.get_links()]

    def macs(self) -> frozenset[str]:
        """The MAC addresses of all interfaces and of their neighbours."""
        found = {message.get_attr("IFLA_ADDRESS") for message in self._netlink.get_links()}
        found |= {message.get_attr("NDA_LLADDR") for message in self._netlink.get_neighbours()}
        return frozenset(mac for mac in found if mac)

    def find(self, name: str) -> Link | None:
        """The interface of that name."""
        return next((link for link in self.all() if link.name == name), None)

    def require(self, name: str, network: str) -> Link:
        """The uplink `name` of `network`. Raises `NotFoundError` that names those there are."""
        links = self.all()
        for link in links:
            if link.name == name:
                return link
        others = [link.name for link in links if not link.name.startswith("ngy-") and link.name != "lo"]
        raise NotFoundError(
            f"network {network}: the host has no interface {name}",
            hint=f"it has {', '.join(others)}" if others else "it has none but lo",
            network=network,
            uplink=name,
        )

    def routes(self) -> list[Route]:
        """The unicast routes of the main table, of both families."""
        names = {link.index: link.name for link in self.all()}
        found: list[Route] = []
        for family, everything in zip((socket.AF_INET, socket.AF_INET6), _TABLE_RANGES, strict=True):
            for message in self._netlink.get_routes(family=family, table=_MAIN_TABLE):
                if message["type"] == _UNICAST:
                    found += _routes(message, everything, names)
        return found

    def make_tap(self, name: str, alias: str, mac: str, mtu: int, addresses: Sequence[Interface]) -> None:
        """The tap is there, up, with exactly these addresses and its MTU; a crash leaves all or nothing.

        Raises `ConflictError` if an interface of that name is somebody else's.
        """
        link = self.find(name)
        if link is None:
            fd = _new_tap(name)
            try:
                link = self.find(name)
                if link is None:
                    raise ConflictError(f"the interface {name} went away while it was made")
                self._netlink.link("set", index=link.index, ifalias=alias, address=mac)
                _quiet(name)
                self._configure(link.index, mtu, addresses)
                tun.persist(fd)
            finally:
                os.close(fd)
            return
        _check_ours(link, alias)
        self._configure(link.index, mtu, addresses)

    def enslave(self, name: str, bridge: Link, vlan: int | None) -> None:
        """The tap is a port of `bridge`, in `vlan` if that is said."""
        link = self.find(name)
        if link is None:
            raise NotFoundError(f"the host has no interface {name}")
        if link.master != bridge.index:
            self._netlink.link("set", index=link.index, master=bridge.index)
        if vlan is not None and vlan != 1:
            self._netlink.vlan_filter("del", index=link.index, vlan_info={"vid": 1})
        if vlan is not None:
            self._netlink.vlan_filter(
                "add", index=link.index, vlan_info={"vid": vlan, "flags": ["pvid", "untagged"]}
            )

    def make_macvtap(self, name: str, alias: str, mtu: int, lower: Link) -> None:
        """A macvtap that takes over all of `lower`; frames of every MAC pass. Raises `ConflictError`."""
        link = self.find(name)
        if link is not None:
            _check_ours(link, alias)
        else:
            try:
                self._netlink.link(
                    "add",
                    ifname=name,
                    kind="macvtap",
                    link=lower.index,
                    macvtap_mode="passthru",
                )
            except Exception as error:
                raise _translated(error, f"a macvtap on {lower.name}", lower.name) from error
            link = self.find(name)
            if link is None:
                raise ConflictError(f"the interface {name} went away while it was made")
            _quiet(name)
        self._netlink.link("set", index=link.index, ifalias=alias)
        self._netlink.link("set", index=link.index, mtu=mtu, state="up")

    def remove(self, name: str, alias: str) -> None:
        """The interface is gone, if it was ours."""
        link = self.find(name)
        if link is not None and _is_ours(link, alias):
            self._netlink.link("del", index=link.index)

    def addresses(self, index: int) -> set[Interface]:
        """Those of an interface, with the lengths of their prefixes."""
        return {
            ipaddress.ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
            for message in self._netlink.get_addr(index=index)
        }

    def _configure(self, index: int, mtu: int, addresses: Sequence[Interface]) -> None:
        self._netlink.link("set", index=index, mtu=mtu, state="up")
        wanted = set(addresses)
        if any(address.version == 6 for address in wanted):
            wanted.add(ipaddress.ip_interface(f"{_LINK_LOCAL}/64"))
        present = self.addresses(index)
        for address in present - wanted:
            self._netlink.addr("del", index=index, **_address(address))
        for address in wanted - present:
            # No duplicate detection: nobody else may have it, and the tap has no carrier to ask over.
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            self._netlink.addr("add", index=index, **_address(address), **flags)


@contextmanager
def open_links() -> Iterator[Links]:
    """A connection for a `with` block, in the network namespace of the calling thread.

    Raises `PermissionDeniedError` where the kernel refuses a change.
    """
    from pyroute2 import IPRoute  # half a second, which a daemon without networks need not wait for
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as netlink:
            yield Links(netlink)
    except NetlinkError as error:
        raise _translated(error, "the host's interfaces", "") from error


def _address(address: Interface) -> dict[str, Any]:
    return {"address": str(address.ip), "prefixlen": address.network.prefixlen}


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    bridge = info.get_attr("IFLA_INFO_DATA") if kind == "bridge" else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        kind=kind,
        vlans=bool(bridge and bridge.get_attr("IFLA_BR_VLAN_FILTERING")),
        master=message.get_attr("IFLA_MASTER") or 0,
        up=bool(message["flags"] & _IFF_UP),
        point_to_point=bool(message["flags"] & _IFF_POINTOPOINT),
    )


def _routes(message: Any, everything: Range, names: dict[int, str]) -> Iterator[Route]:
    address = message.get_attr("RTA_DST")
    destination = ipaddress.ip_network(f"{address}/{message['dst_len']}") if address else everything
    hops = message.get_attr("RTA_MULTIPATH") or []
    for hop in hops:
        gateway = bool(hop.get_attr("RTA_GATEWAY") or hop.get_attr("RTA_VIA"))
        yield Route(destination, names.get(hop["oif"], ""), gateway)
    if not hops:
        gateway = bool(message.get_attr("RTA_GATEWAY") or message.get_attr("RTA_VIA"))
        yield Route(destination, names.get(message.get_attr("RTA_OIF"), ""), gateway)


def _new_tap(name: str) -> int:
    try:
        return tun.open_tap(name)
    except FileNotFoundError as error:
        raise UnsupportedError(
            "the host has no /dev/net/tun", hint="modprobe tun; in a container: give it the device"
        ) from error
    except PermissionError as error:
        raise PermissionDeniedError(
            "this user cannot make network interfaces",
            hint="use root's daemon, or a network of mode `user`, which needs no privileges",
        ) from error


def _quiet(name: str) -> None:
    """The host says nothing in a network by itself, and takes nobody there for its router."""
    for setting, value in (
        ("addr_gen_mode", _ADDR_GEN_MODE_NONE),
        ("accept_ra", "0"),
        ("accept_redirects", "0"),
        ("autoconf", "0"),
        ("accept_dad", "0"),
    ):
        sysctls.write_own(f"ipv6/conf/{name}/{setting}", value)
    for setting, value in (
        ("accept_redirects", "0"),
        ("send_redirects", "0"),
        ("arp_ignore", "1"),
        ("rp_filter", "1"),
    ):
        sysctls.write_own(f"ipv4/conf/{name}/{setting}", value)


def _is_ours(link: Link, alias: str) -> bool:
    """A macvtap has its name before it can have its alias, so a crash may leave one without."""
    return link.alias == alias or (link.kind == "macvtap" and not link.alias)


def _check_ours(link: Link, alias: str) -> None:
    if not _is_ours(link, alias):
        whose = f"it is the {link.alias}" if link.alias else "it is not one of Nagaya's"
        raise ConflictError(
            f"an interface {link.name} is there already, and {whose}",
            hint=f"ip link delete {link.name}, if nobody needs it; or choose another name for the network",
            interface=link.name,
        )


def _translated(error: Exception, what: str, lower: str) -> NagayaError:
    number = getattr(error, "code", 0) or getattr(error, "errno", 0)
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(
            f"{what}: this user may not change interfaces",
            hint="use root's daemon, or a network of mode `user`, which needs no privileges",
        )
    if number == errno.EBUSY:
        return ConflictError(
            f"{what}: the interface is in use",
            hint=f"something else is stacked on it: ip -d link show | grep @{lower}",
        )
    if number == errno.EOPNOTSUPP:
        return UnsupportedError(f"{what}: the kernel does not know it", hint="modprobe macvtap")
    return NagayaError(f"{what}: {error}")
