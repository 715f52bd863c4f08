"""Forwards, rules and addresses as people write them: `127.0.0.1:8080:80/tcp`, `tcp:22@10.0.0.0/8`.

Every function raises `ValueError` that shows the value and what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["any", "tcp", "udp", "icmp"]

MAC_PATTERN = r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$"  # an odd first byte would be a group's address

_PROTOCOLS: dict[str, Protocol] = {"any": "any", "tcp": "tcp", "udp": "udp", "icmp": "icmp"}
_FORWARD = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?"
    r"(?P<host>[0-9]{1,5}):(?P<machine>[0-9]{1,5})(?:/(?P<protocol>[a-z]+))?"
)
_RULE = re.compile(
    r"(?P<protocol>[a-z]+)(?::(?P<low>[0-9]{1,5})(?:-(?P<high>[0-9]{1,5}))?)?(?:@(?P<peer>\S+))?"
)
_GROUP = re.compile(r"group:[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class PortForward:
    """A port of the host that leads to a port of a machine. `host_address` "": all of the host's."""

    host_address: str
    host_port: int
    machine_port: int
    protocol: Literal["tcp", "udp"]

    def __str__(self) -> str:
        address = f"[{self.host_address}]" if ":" in self.host_address else self.host_address
        protocol = "" if self.protocol == "tcp" else f"/{self.protocol}"
        return f"{address}{':' if address else ''}{self.host_port}:{self.machine_port}{protocol}"

    def clashes(self, other: PortForward) -> bool:
        """Whether one packet could be meant for both."""
        addresses = {self.host_address, other.host_address}
        same = (self.protocol, self.host_port) == (other.protocol, other.host_port)
        return same and (len(addresses) == 1 or "" in addresses)


@dataclass(frozen=True, slots=True)
class Rule:
    """Connections that a group allows. `ports` None: all; `peer`: "any", a range, or "group:NAME"."""

    protocol: Protocol
    ports: tuple[int, int] | None = None
    peer: str = "any"

    def __str__(self) -> str:
        low, high = self.ports or (0, 0)
        ports = f":{low}{f'-{high}' if high != low else ''}" if self.ports else ""
        return f"{self.protocol}{ports}{f'@{self.peer}' if self.peer != 'any' else ''}"


def parse_forward(text: str) -> PortForward:
    """`[ADDRESS:]PORT:PORT[/tcp|/udp]`, the host's port first, as docker has it."""
    match = _FORWARD.fullmatch(text)
    protocol = (match["protocol"] or "tcp") if match else ""
    if match is None or protocol not in ("tcp", "udp"):
        raise ValueError(
            f"{text!r} is no port forward; write [ADDRESS:]HOST_PORT:PORT[/udp], for example 8080:80 or "
            "127.0.0.1:2222:22"
        )
    address = (match["address"] or "").strip("[]")
    if address:
        address = parse_address(address)
        address = "" if ipaddress.ip_address(address).is_unspecified else address
    host_port, machine_port = (_port(match[one], text) for one in ("host", "machine"))
    return PortForward(address, host_port, machine_port, "udp" if protocol == "udp" else "tcp")


def parse_rule(text: str) -> Rule:
    """`PROTOCOL[:PORT[-PORT]][@PEER]`."""
    match = _RULE.fullmatch(text)
    protocol = _PROTOCOLS.get(match["protocol"]) if match else None
    if match is None or protocol is None:
        raise ValueError(
            f"{text!r} is no rule; write PROTOCOL[:PORT[-PORT]][@PEER], for example tcp:80, "
            "udp:53@10.0.0.0/8, tcp:5432@group:web or any; protocols are any, tcp, udp and icmp"
        )
    ports = None
    if match["low"] is not None:
        if protocol not in ("tcp", "udp"):
            raise ValueError(f"{text!r}: {protocol} has no ports; tcp and udp have")
        ports = (_port(match["low"], text), _port(match["high"] or match["low"], text))
        if ports[0] > ports[1]:
            raise ValueError(f"{text!r}: {ports[0]} is above {ports[1]}")
    return Rule(protocol, ports, _peer(match["peer"] or "any", text))


def parse_address(text: str, version: int = 0) -> str:
    """An address in its canonical form; "" stays. `version` 4 or 6, or 0 for either."""
    if not text:
        return text
    try:
        address = ipaddress.ip_address("" if "%" in text else text)  # a zone is a host's matter
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address") from error
    if version and address.version != version:
        raise ValueError(f"{text} is not an IPv{version} address")
    return str(address)


def parse_subnet(text: str | None, version: int) -> str | None:
    """A range in its canonical form; "auto" and None stay, "" and "none" are None."""
    if text in (None, "auto"):
        return text
    if text in ("", "none"):
        return None
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a range of IPv{version} addresses: {error}") from error
    low, high = (8, 29) if version == 4 else (64, 64)
    if network.version != version or not low <= network.prefixlen <= high:
        lengths = f"/{low} to /{high}" if low != high else f"/{low}"
        raise ValueError(f"{text} is not a range of IPv{version} addresses with {lengths}")
    return str(network)


def _port(text: str, whole: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(f"{whole!r}: {port} is not a port, 1 to 65535")
    return port


def _peer(text: str, whole: str) -> str:
    if text == "any" or _GROUP.fullmatch(text):
        return text
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        allowed = "any, a range of addresses or group:NAME"
        raise ValueError(f"{whole!r}: {text!r} is not {allowed}: {error}") from error
