"""Ports of networks: what they may do, and what they have done (docs/plane.md, "Networks")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from nagaya.errors import UsageError


@dataclass(frozen=True, slots=True)
class SecurityRow:
    """Connections that are allowed. `ports`: the first and the last; `peer`: any, a range or `group:NAME`."""

    direction: Literal["in", "out"]
    protocol: Literal["any", "tcp", "udp", "icmp"] = "any"
    ports: tuple[int, int] | None = None
    peer: str = "any"


@dataclass(frozen=True, slots=True)
class PortRules:
    """What a port may do. The core checks the bounds."""

    addresses: tuple[str, ...] = ()  # what it may send from; () is any
    spoof: bool = False  # any MAC and any address
    dhcp_server: bool = False
    router_advertisements: bool = False
    isolated: bool = False  # talks with uplinks only
    vlan: int | None = None
    trunk: tuple[int, ...] = ()
    storm_pps: int | None = 1000  # broadcasts, multicasts and frames to unknown addresses, each, a second
    groups: tuple[str, ...] = ()
    security: tuple[SecurityRow, ...] | None = None  # None allows everything


@dataclass(frozen=True, slots=True)
class PortStatus:
    """A port as who is at it sees it: `rx` is what it got. `drops` counts frames by reason."""

    id: str
    network: str
    mac: str | None  # None of an uplink
    link: bool
    connected: bool
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    drops: Mapping[str, int]
    fdb: int  # addresses learnt from it
    faults: Mapping[str, Any] | None = None  # those on purpose
    captured: bool = False  # somebody looks at its frames


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection of a port as who is at it sees it: `tx` is what it sent."""

    protocol: str | int  # "tcp", "udp", "icmp", or the number in IP
    direction: Literal["in", "out"]  # who began: others, or the port
    state: Literal["new", "open", "closing"]  # new: one side alone has spoken
    local: str
    local_port: int  # of an echo its id
    remote: str
    remote_port: int
    vlan: int  # 0 for none
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    age_ms: int
    idle_ms: int


def rules_from_json(value: object) -> PortRules:
    """The rules that `value` describes; the core looks at the values. Raises `UsageError`."""
    known = _known("rules", value, PortRules)
    for name in ("addresses", "trunk", "groups"):
        if name in known:
            known[name] = tuple(_list(name, known[name]))
    if known.get("security") is not None:
        known["security"] = tuple(map(_row, _list("security", known["security"])))
    return PortRules(**known)


def port_from_json(row: Mapping[str, Any]) -> PortStatus:
    """A row of `query-ports`."""
    return PortStatus(**row)


def _row(value: object) -> SecurityRow:
    known = _known("a row of security", value, SecurityRow)
    if "direction" not in known:
        raise UsageError(f"security {value!r} has no direction", hint="it is in or out")
    if known.get("ports") is not None:
        known["ports"] = tuple(_list("ports", known["ports"]))
    return SecurityRow(**known)


def _known(what: str, value: object, kind: type[PortRules] | type[SecurityRow]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is {value!r}, not an object")
    for name in value:
        if name not in names:
            raise UsageError(f"field {name!r} of {what} is unknown", hint=f"it has {', '.join(names)}")
    return dict(value)


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"field {name!r} is {value!r}, not a list")
    return list(value)
