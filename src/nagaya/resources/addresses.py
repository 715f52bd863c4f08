"""Which addresses the NICs of machines have: chosen once, unique, and the same again where that can be.

An IPv4 address is looked for from a place that the machine's name says, so that a machine made anew under its
old name mostly has its old address, and one that was just given back is not at once another machine's. The
IPv6 address is the one that the guest's system makes of the prefix and its MAC address, whether or not it
asks by DHCPv6.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping

from nagaya.errors import ConflictError, ResourceError, SpecError

MAC_PREFIX = "52:54:00"  # locally administered; what KVM and QEMU use
HOLDERS_SHOWN = 8  # of an exhausted range, in the message

_RANGES = ("10.77.0.0/16", "172.29.0.0/16", "192.168.128.0/17")  # private (RFC 1918), and seldom in use
_RANGE_BITS = 24


def choose_mac(seed: str, taken: Collection[str]) -> str:
    """A MAC address by hash of `seed`, the next one of that seed if it is among `taken`."""
    for attempt in range(2**16):
        digest = hashlib.sha256(f"{seed}#{attempt}".encode()).digest()
        mac = f"{MAC_PREFIX}:{digest[:3].hex(':')}"
        if mac not in taken:
            return mac
    raise ResourceError(f"no MAC address of {MAC_PREFIX} is free", hint="give the NIC one: mac: ...")


def choose_ipv4(network: str, span: str, name: str, wish: str, holders: Mapping[str, str]) -> str:
    """An address of `span` for the machine `name`: `wish`, if that is not "", or a free one.

    `holders` are the addresses that are taken, and whose they are. The range's first address is the host's.
    Raises `SpecError` for a wish outside, `ConflictError` for one that is taken, `ResourceError` if none is
    free.
    """
    subnet = ipaddress.IPv4Network(span)
    count = subnet.num_addresses - 3  # without the range's own, the host's and the broadcast address
    if wish:
        number = int(ipaddress.IPv4Address(wish)) - int(subnet[0])
        _check_wish(network, span, wish, holders, inside=2 <= number < count + 2)
        return wish
    for number in _numbers(name, count):
        address = str(subnet[number])
        if address not in holders:
            return address
    raise _exhausted(network, span, count, holders)


def choose_ipv6(
    network: str, span: str, name: str, wish: str, holders: Mapping[str, str], *, near: int = 0
) -> str:
    """The same for IPv6, with the number `near` in the range if that is free and not 0."""
    subnet = ipaddress.IPv6Network(span)
    if wish:
        number = int(ipaddress.IPv6Address(wish)) - int(subnet[0])
        _check_wish(network, span, wish, holders, inside=2 <= number < subnet.num_addresses)
        return wish
    for number in (near, *_numbers(name, 2**16)):
        address = str(subnet[number])
        if number > 1 and address not in holders:
            return address
    raise _exhausted(network, span, 2**16, holders)


def interface_id(mac: str) -> int:
    """The lower 64 bits of the address that a system without DHCPv6 chooses (RFC 4291, appendix A)."""
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([first ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]]), "big")


def free_range(used: Iterable[str]) -> str:
    """A /24 that overlaps none of the IPv4 ranges `used`. Raises `ResourceError` if there is none."""
    taken = [ipaddress.IPv4Network(one, strict=False) for one in used]
    for span in _RANGES:
        for candidate in ipaddress.IPv4Network(span).subnets(new_prefix=_RANGE_BITS):
            if not any(candidate.overlaps(one) for one in taken):
                return str(candidate)
    raise ResourceError(
        f"every /{_RANGE_BITS} of {', '.join(_RANGES)} is in use on this host",
        hint="name a range that is free: --ipv4 10.200.0.0/24",
    )


def unique_prefix(seed: str, used: Iterable[str]) -> str:
    """A /64 with a prefix that nobody else should have (RFC 4193), by hash of `seed`."""
    taken = set(used)
    for attempt in range(2**16):
        digest = hashlib.sha256(f"{seed}#{attempt}".encode()).digest()
        prefix = str(ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), 64)))
        if prefix not in taken:
            return prefix
    raise ResourceError("no IPv6 prefix is free", hint="name one: --ipv6 fd12:3456:789a::/64")


def overlap(span: str, used: Iterable[str]) -> str:
    """The first of the ranges `used`, of either family, that `span` overlaps; "" if none."""
    mine = ipaddress.ip_network(span)
    for one in used:
        other = ipaddress.ip_network(one, strict=False)
        if mine.version == other.version and mine.overlaps(other):
            return one
    return ""


def _numbers(name: str, count: int) -> Iterator[int]:
    """All of 2 to `count` + 1, from where `name` says."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count
    return (2 + (start + step) % count for step in range(count))


def _check_wish(network: str, span: str, wish: str, holders: Mapping[str, str], *, inside: bool) -> None:
    if not inside:
        raise SpecError(
            f"{wish} is not an address for a machine of network {network}, which has {span}",
            hint="its first address is the host's; leave it out, and one is chosen",
            network=network,
        )
    if wish in holders:
        raise ConflictError(
            f"{wish} is the address of {holders[wish]}",
            hint="leave it out, and one is chosen",
            network=network,
            holder=holders[wish],
        )


def _exhausted(network: str, span: str, count: int, holders: Mapping[str, str]) -> ResourceError:
    names = sorted(set(holders.values()))
    shown = ", ".join(names[:HOLDERS_SHOWN]) + (
        f" and {len(names) - HOLDERS_SHOWN} more" if len(names) > HOLDERS_SHOWN else ""
    )
    return ResourceError(
        f"network {network} has no address left: all {count} of {span} are taken, by {shown}",
        hint="delete a machine, or make a network with a larger range",
        network=network,
        range=span,
        holders=names,
    )
