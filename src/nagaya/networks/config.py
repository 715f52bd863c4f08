"""What the host's side of networks is told and tells: addresses of machines, port forwards, uplinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Instance:
    """What the metadata service says to a machine, for cloud-init and its like.

    `user_data` is given out as it is. `instance_id` is the machine's for its life: a guest that sees another
    one takes itself for new.
    """

    instance_id: str
    public_keys: tuple[str, ...] = ()  # lines of authorized_keys
    user_data: str = ""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The addresses of one interface of a machine. An address that is "" is not given out."""

    machine: str
    mac: str
    ipv4: str = ""
    ipv6: str = ""
    hostname: str = ""  # "" is the machine's name
    instance: Instance | None = None  # None: the metadata service does not know the machine

    @property
    def name(self) -> str:
        """Its name in the network's domain."""
        return self.hostname or self.machine


@dataclass(frozen=True, slots=True)
class Forward:
    """Connections to a port of the host that go to a port of a machine.

    `host_address` "" is every address of the host of the family of `machine_address`.
    """

    protocol: Literal["tcp", "udp"]
    host_address: str
    host_port: int
    machine_address: str
    machine_port: int
    machine: str = ""  # whose it is, for messages


@dataclass(frozen=True, slots=True)
class Uplink:
    """How the plane reaches the world for a network: what its `uplink` device is made of.

    `tap`: an interface that persists, to be opened by name. `macvtap`: one whose character device is
    `/dev/tap<index of the interface>`. `stream`: a unix socket at `path` that speaks frames with 4 bytes of
    big-endian length. `none`: the network has no uplink.
    """

    kind: Literal["tap", "macvtap", "stream", "none"]
    interface: str = ""
    path: str = ""
    mtu: int = 1500
    rate: int | None = None  # bytes per second; None: not known, and not shaped
