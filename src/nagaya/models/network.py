"""Networks, security groups, and what goes through the machines' NICs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from nagaya.models.answer import Answer

NetworkState = Literal["up", "down", "failed"]


@dataclass(frozen=True, slots=True)
class NicInfo(Answer):
    """A NIC of a machine, and its addresses: chosen when the machine was made, and kept until it goes."""

    name: str  # "net0"
    network: str
    mac: str
    ipv4: str  # "" where somebody on the uplink's network gives it one
    ipv6: str
    link: bool  # whether its cable is plugged
    groups: list[str]


@dataclass(frozen=True, slots=True)
class AddressInfo(Answer):
    """Who has an address of a network."""

    machine: str
    nic: str
    mac: str
    ipv4: str
    ipv6: str


@dataclass(frozen=True, slots=True)
class NetworkInfo(Answer):
    """A network. It is `up` while a machine uses it; `cause` says why it is `failed`."""

    name: str
    mode: str
    ipv4: str  # its range, "" for none
    ipv6: str
    gateway4: str  # the host's address in it
    gateway6: str
    uplink: str  # what was asked for
    interface: str  # what is there on the host while it is up
    state: NetworkState
    cause: str
    created_at: float
    spec: dict[str, Any]
    addresses: list[AddressInfo]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Build it from a decoded answer."""
        known = {name: body[name] for name in cls.__dataclass_fields__}
        return cls(**{**known, "addresses": [AddressInfo.from_json(one) for one in body["addresses"]]})


@dataclass(frozen=True, slots=True)
class GroupInfo(Answer):
    """A security group: its rules as people write them, and the machines that are in it."""

    name: str
    inbound: list[str]
    outbound: list[str]
    machines: list[str]


@dataclass(frozen=True, slots=True)
class PortInfo(Answer):
    """A port of a network's switch: a NIC, or the way out. Counters are the guest's view, of this run."""

    id: str  # "web/net0", "uplink", or "uplink of web/net0" where each NIC has its own
    machine: str  # "" for the uplink
    network: str
    mac: str
    link: bool
    connected: bool  # whether a guest drives it
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    drops: dict[str, int] = field(default_factory=dict)  # by reason


@dataclass(frozen=True, slots=True)
class FlowInfo(Answer):
    """A connection of a NIC, as its machine sees it: `tx` is what it sent."""

    protocol: str  # "tcp", "udp", "icmp", or the number in IP
    direction: Literal["in", "out"]  # who began: others, or this machine
    state: Literal["new", "open", "closing"]  # new: one side alone has spoken
    local: str
    local_port: int  # of an echo its id
    remote: str
    remote_port: int
    machine: str  # whose address `remote` is, "" if no machine's of this network
    vlan: int  # 0 for none
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    age_ms: int
    idle_ms: int


@dataclass(frozen=True, slots=True)
class CaptureInfo(Answer):
    """A capture of a NIC's frames. `missed` are those that came faster than they were read."""

    packets: int
    missed: int
    running: bool
