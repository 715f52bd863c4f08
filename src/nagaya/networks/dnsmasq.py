"""DHCP, router advertisements and names for a network: the configuration of its dnsmasq.

Only reserved addresses are given out. dnsmasq runs without root: as a user of its own, with the capabilities
to serve ports below 1024 and to answer those who have no address yet, and no way to more.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.networks.config import Reservation
from nagaya.networks.files import write_if_changed
from nagaya.networks.helper import Program
from nagaya.networks.programs import require_program
from nagaya.networks.rules import METADATA_ADDRESS
from nagaya.spec import NetworkSpec

_LEASE = "1h"
_CAPABILITIES = "-all,+net_admin,+net_raw,+net_bind_service"
_LOG_LIMIT = 2**20  # bytes; guests decide how much there is to say
_MEMORY_LIMIT = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Dnsmasq:
    """The dnsmasq of a network: its files in `directory`, which its `uid` can read."""

    directory: Path
    uid: int

    @property
    def config(self) -> Path:
        """Its configuration, and the mark of its process."""
        return self.directory / "dnsmasq.conf"

    def program(self, network: str) -> Program:
        """How to start it. Raises `UnavailableError` if something is not installed."""
        argv = (
            *(sys.executable, "-m", "nagaya.networks.seccomp"),
            *(require_program("prlimit", "util-linux"), f"--fsize={_LOG_LIMIT}", f"--as={_MEMORY_LIMIT}"),
            *("--core=0", "--nofile=1024", "--"),
            *(require_program("setpriv", "util-linux"), f"--reuid={self.uid}", f"--regid={self.uid}"),
            *("--clear-groups", f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}"),
            *(f"--bounding-set={_CAPABILITIES}", "--no-new-privs", "--"),
            *(require_program("dnsmasq", "dnsmasq-base"), "-C", str(self.config)),
        )
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
        return Program(f"dnsmasq of network {network}", argv, str(self.config), self.uid, environment)

    def needs(self, spec: NetworkSpec, interface: str, mtu: int) -> bool:
        """Whether the configuration has to change, which takes a restart."""
        return not self.config.exists() or self.config.read_text() != self._render(spec, interface, mtu)

    def write(self, spec: NetworkSpec, interface: str, mtu: int) -> None:
        """Write the configuration."""
        logfile = self.directory / "dnsmasq.log"
        logfile.touch(mode=0o600)
        os.chown(logfile, self.uid, self.uid)
        os.truncate(logfile, 0)
        write_if_changed(self.config, self._render(spec, interface, mtu), self.uid)

    def write_hosts(self, spec: NetworkSpec, reservations: Sequence[Reservation]) -> bool:
        """Write who has which address. Whether that changed; dnsmasq reads it again at SIGHUP."""
        hosts = write_if_changed(self.directory / "hosts", _hosts(spec, reservations), self.uid)
        leases = write_if_changed(self.directory / "reservations", _reservations(reservations), self.uid)
        return hosts or leases

    def _render(self, spec: NetworkSpec, interface: str, mtu: int) -> str:
        lines = [
            f"# network {spec.name}; written by nagaya, changes are lost",
            f"interface={interface}",
            "except-interface=lo",
            "bind-dynamic",
            "pid-file=",
            f"log-facility={self.directory / 'dnsmasq.log'}",
            *("quiet-dhcp", "quiet-dhcp6", "quiet-ra"),
            *(_names(spec, self.directory) if spec.dns else ["port=0"]),
            *(_leases(spec, self.directory, mtu) if spec.dhcp else []),
        ]
        return "\n".join([*lines, ""])


def _names(spec: NetworkSpec, directory: Path) -> list[str]:
    lines = [
        *("no-hosts", f"addn-hosts={directory / 'hosts'}"),
        *(f"local=/{spec.domain}/", "domain-needed", "bogus-priv", "cache-size=1000", "dns-forward-max=150"),
    ]
    for text in filter(None, (spec.ipv4, spec.ipv6)):
        lines.append(f"local=/{_reverse(ipaddress.ip_network(text))}/")
    if spec.mode == "isolated":
        lines.append("no-resolv")
    return lines


def _leases(spec: NetworkSpec, directory: Path, mtu: int) -> list[str]:
    lines = [
        *("dhcp-authoritative", "leasefile-ro", "no-ping", f"domain={spec.domain}"),
        *(f"dhcp-hostsfile={directory / 'reservations'}", "dhcp-ignore=tag:!known", "dhcp-ignore-names"),
    ]
    if spec.ipv4:
        lines += _options4(spec, ipaddress.IPv4Network(spec.ipv4), mtu)
    if spec.ipv6:
        lines += _options6(spec, ipaddress.IPv6Network(spec.ipv6))
    return lines


def _options4(spec: NetworkSpec, network: ipaddress.IPv4Network, mtu: int) -> list[str]:
    host = network[1]
    lines = [
        f"dhcp-range={network.network_address},static,{network.netmask},{_LEASE}",
        f"dhcp-lease-max={min(network.num_addresses, 65536)}",
        f"dhcp-option=option:mtu,{mtu}",
        f"dhcp-option=option:dns-server{f',{host}' if spec.dns else ''}",
    ]
    if spec.mode == "isolated":
        # No way out; RFC 3442's routes still lead to the metadata service.
        lines.append("dhcp-option=option:router")
        lines.append(f"dhcp-option=option:classless-static-route,{METADATA_ADDRESS}/32,{host}")
    else:
        lines.append(f"dhcp-option=option:router,{host}")
    return lines


def _options6(spec: NetworkSpec, network: ipaddress.IPv6Network) -> list[str]:
    # Addresses are made of MACs (EUI-64), so guests with DHCPv6 and guests with SLAAC have the same one.
    lines = [
        "enable-ra",
        f"dhcp-range={network.network_address},static,slaac,{network.prefixlen},{_LEASE}",
        f"dhcp-option=option6:dns-server{f',[{network[1]}]' if spec.dns else ''}",
    ]
    if spec.mode == "isolated":
        lines.append("ra-param=*,0,0")
    return lines


def _hosts(spec: NetworkSpec, reservations: Sequence[Reservation]) -> str:
    lines = []
    if spec.ipv4:
        lines.append(f"{ipaddress.ip_network(spec.ipv4)[1]} host.{spec.domain}")
    if spec.ipv6:
        lines.append(f"{ipaddress.ip_network(spec.ipv6)[1]} host.{spec.domain}")
    for one in sorted(reservations, key=lambda one: one.mac):
        lines += [f"{address} {one.name}.{spec.domain}" for address in (one.ipv4, one.ipv6) if address]
    return "\n".join([*lines, ""])


def _reservations(reservations: Sequence[Reservation]) -> str:
    lines = []
    for one in sorted(reservations, key=lambda one: one.mac):
        addresses = [one.ipv4] if one.ipv4 else []
        addresses += [f"[{one.ipv6}]"] if one.ipv6 else []
        lines.append(",".join([one.mac, *addresses, one.name]))
    return "\n".join([*lines, ""])


def _reverse(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """The zone of the names of its addresses: all of it, and a little more if its length is odd."""
    if network.version == 4:
        kept = max(1, network.prefixlen // 8)
        return ".".join([*reversed(str(network.network_address).split(".")[:kept]), "in-addr.arpa"])
    digits = network.network_address.exploded.replace(":", "")[: max(1, network.prefixlen // 4)]
    return ".".join([*reversed(digits), "ip6.arpa"])
