"""What the host's kernel lets through for networks: one nftables table, written as a whole.

`render` is pure. Guests get addresses, names, metadata and pings from the host and nothing else; they reach
what lies behind the uplinks and no other network of this host; nobody reaches them but by a forward, or by
a route where the network's mode is `routed`.
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nagaya.errors import NagayaError, PermissionDeniedError, UnsupportedError
from nagaya.networks.config import Forward
from nagaya.networks.names import ANY_INTERFACE
from nagaya.networks.programs import require_program

METADATA_ADDRESS = "169.254.169.254"
METADATA_ADDRESS_6 = "fd00:ec2::254"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Area:
    """A network as the table sees it. `uplinks` are the interfaces of the host that lead to the world."""

    name: str
    interface: str
    ipv4: str | None  # its range
    ipv6: str | None
    outbound: bool  # guests may go out
    inbound: bool  # the world may come in
    masquerade: bool  # as the host
    dhcp: bool
    dns: bool
    metadata_port: int  # on the host's address in the network
    uplinks: tuple[str, ...]
    forwards: tuple[Forward, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """The host's interfaces from which nothing was forwarded before networks needed it, by family.

    "all" is all of them.
    """

    ipv4: frozenset[str] = frozenset()
    ipv6: frozenset[str] = frozenset()


def render(table: str, prefix: str, areas: Sequence[Area], closed: Closed) -> str:
    """The table as `nft -f` takes it, in place of the one of that name.

    `prefix` begins the names of this Nagaya's interfaces. What comes from `closed` goes to networks only.
    """
    own = f'"{prefix}*"'
    chains = [
        _chain("raw", "filter hook prerouting priority raw", _raw(own, areas)),
        _chain("incoming", "nat hook prerouting priority dstnat", _incoming(areas)),
        _chain("local", "nat hook output priority -100", _forwards(areas)),
        _chain("outgoing", "nat hook postrouting priority srcnat", _outgoing(areas)),
        _chain("host", "filter hook input priority filter", _host(own, areas)),
        _chain("forward", "filter hook forward priority filter", _forward(own, areas, closed)),
    ]
    return "\n".join(
        [f"table inet {table} {{}}", f"delete table inet {table}", f"table inet {table} {{", *chains, "}", ""]
    )


def apply(script: str) -> None:
    """Hand a script to nft, which does all of it or nothing.

    Raises `PermissionDeniedError`, `UnavailableError` without nft, `UnsupportedError` with nft's words.
    """
    done = subprocess.run(
        [require_program("nft", "nftables"), "-f", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    if done.returncode == 0:
        return
    if "not permitted" in done.stderr:
        raise PermissionDeniedError(
            "this user may not change packet filter rules",
            hint="use root's daemon, or a network of mode `user`, which needs no privileges",
        )
    if "No such file" in done.stderr or "not supported" in done.stderr:
        raise UnsupportedError(
            f"the kernel does not take the packet filter rules: {done.stderr.strip()[:500]}",
            hint="modprobe nf_tables nft_nat nft_masq nft_fib_inet nft_ct nft_reject_inet",
        )
    raise NagayaError(f"nft did not take the packet filter rules: {done.stderr.strip()[:500]}")


def listed(table: str) -> str:
    """What the kernel has of the table, "" if there is none."""
    command = [require_program("nft", "nftables"), "--stateless", "list", "table", "inet", table]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    return done.stdout if done.returncode == 0 else ""


def delete(table: str) -> None:
    """The table is gone. As `apply`."""
    apply(f"table inet {table} {{}}\ndelete table inet {table}\n")


def _chain(name: str, hook: str, rules: Iterable[str]) -> str:
    lines = "".join(f"    {rule}\n" for rule in rules)
    return f"  chain {name} {{\n    type {hook}; policy accept;\n{lines}  }}"


def _raw(own: str, areas: Iterable[Area]) -> Iterator[str]:
    """What no guest may send, whatever is made of it later: the second door behind the switch.

    Loopback addresses above all: `route_localnet` lets them through the kernel's own check.
    """
    yield f"iifname {own} ip daddr 127.0.0.0/8 drop"
    yield f"iifname {own} ip saddr 127.0.0.0/8 drop"
    for area in areas:
        if area.ipv4:
            yield f'iifname "{area.interface}" ip saddr != {{ 0.0.0.0, {area.ipv4} }} drop'
        else:
            yield f'iifname "{area.interface}" meta nfproto ipv4 drop'
        if area.ipv6:
            yield f'iifname "{area.interface}" ip6 saddr != {{ ::, fe80::/10, {area.ipv6} }} drop'
        else:
            yield f'iifname "{area.interface}" meta nfproto ipv6 drop'


def _incoming(areas: Iterable[Area]) -> Iterator[str]:
    for area in areas:
        if area.ipv4:
            yield (
                f'iifname "{area.interface}" ip daddr {METADATA_ADDRESS} tcp dport 80'
                f" redirect to :{area.metadata_port}"
            )
        if area.ipv6:
            yield (
                f'iifname "{area.interface}" ip6 daddr {METADATA_ADDRESS_6} tcp dport 80'
                f" redirect to :{area.metadata_port}"
            )
    yield f'iifname "{ANY_INTERFACE}" accept'
    yield from _forwards(areas)


def _forwards(areas: Iterable[Area]) -> Iterator[str]:
    for area in areas:
        for forward in area.forwards:
            machine = ipaddress.ip_address(forward.machine_address)
            family, name = ("ip6", "ipv6") if machine.version == 6 else ("ip", "ipv4")
            where = (
                f"{family} daddr {forward.host_address}"
                if forward.host_address
                else f"meta nfproto {name} fib daddr type local"
            )
            target = f"[{machine}]" if machine.version == 6 else str(machine)
            yield (
                f"{where} {forward.protocol} dport {forward.host_port}"
                f" dnat {family} to {target}:{forward.machine_port}"
            )


def _outgoing(areas: Iterable[Area]) -> Iterator[str]:
    for area in areas:
        yield f'oifname "{area.interface}" ip saddr 127.0.0.0/8 masquerade'
        if not area.masquerade:
            continue
        for family, network in (("ip", area.ipv4), ("ip6", area.ipv6)):
            if network:
                yield (
                    f'{family} saddr {network} {family} daddr != {network} oifname != "{ANY_INTERFACE}"'
                    " masquerade"
                )


def _host(own: str, areas: Iterable[Area]) -> Iterator[str]:
    """What guests get from the host itself."""
    yield f"iifname != {own} accept"
    yield "ct state established,related accept"
    yield "icmp type echo-request accept"
    yield (
        "icmpv6 type { echo-request, nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit,"
        " mld-listener-report, mld-listener-done, mld2-listener-report } accept"
    )
    yield "fib daddr . iif type != { local, broadcast, multicast } reject with icmpx admin-prohibited"
    for area in areas:
        here = f'iifname "{area.interface}"'
        if area.dhcp and area.ipv4:
            yield f"{here} udp dport 67 accept"
        if area.dhcp and area.ipv6:
            yield f"{here} udp dport 547 accept"
        if area.dns:
            yield f"{here} meta l4proto {{ tcp, udp }} th dport 53 accept"
        yield f"{here} tcp dport {area.metadata_port} accept"
    yield "meta pkttype { broadcast, multicast } drop"
    yield "reject with icmpx admin-prohibited"


def _forward(own: str, areas: Iterable[Area], closed: Closed) -> Iterator[str]:
    """Between networks and the world. A rule of another tool may still refuse what this lets through."""
    yield f"iifname {own} tcp flags syn / syn,rst tcp option maxseg size set rt mtu"
    yield f"oifname {own} tcp flags syn / syn,rst tcp option maxseg size set rt mtu"
    yield f"iifname {own} ct state established,related accept"
    yield f"oifname {own} ct state established,related accept"
    for area in areas:
        if area.forwards:
            yield f'oifname "{area.interface}" iifname != "{ANY_INTERFACE}" ct status dnat accept'
        ways = _quoted(area.uplinks)
        if area.outbound and ways:
            yield f'iifname "{area.interface}" ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited'
            yield f'iifname "{area.interface}" oifname {{ {ways} }} accept'
        if area.inbound and ways:
            yield f'oifname "{area.interface}" iifname {{ {ways} }} accept'
    yield f"iifname {own} reject with icmpx admin-prohibited"
    yield f"oifname {own} reject with icmpx admin-prohibited"
    for family, names in (("ipv4", closed.ipv4), ("ipv6", closed.ipv6)):
        if "all" in names:
            yield f"meta nfproto {family} drop"
        elif names:
            yield f"iifname {{ {_quoted(sorted(names))} }} meta nfproto {family} drop"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
