"""How the passt of a machine is started: its way out of a network of mode `user`, without privileges.

passt speaks frames on a unix socket and makes the guest's connections as its own; it answers DHCP, DHCPv6
and router solicitations with the addresses that the machine has here. It shuts itself in (namespaces, an
empty root, no capabilities, seccomp), and ends when the plane closes the socket.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import ConflictError
from nagaya.networks.config import Forward, Reservation
from nagaya.networks.helper import Program
from nagaya.networks.links import Route
from nagaya.networks.names import Names
from nagaya.networks.programs import require_program
from nagaya.spec import NetworkSpec

ROUTER = "fe80::1"  # what passt is as a router; of IPv4 the first address of the network's range
RESOLVERS = 3  # as many as resolv.conf(5) allows
_MEMORY_LIMIT = 512 * 2**20  # bytes of address space; it begins with 74 MiB
_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the host passt is told at its start, and keeps: the guest does not notice later changes."""

    interface: str  # whose link-local address it uses as its own; "lo" has none, which is no IPv6
    resolvers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Passt:
    """The passt of one NIC. Its socket in `directory` is made by `uid`, and is the mark of its process."""

    directory: Path
    uid: int
    spec: NetworkSpec
    reservation: Reservation
    forwards: tuple[Forward, ...]

    @property
    def socket(self) -> Path:
        """Where the plane connects."""
        return self.directory / self.reservation.mac.replace(":", "")

    def program(self, names: Names, around: Surroundings) -> Program:
        """How to start it. Raises `UnavailableError` if it is not installed, `ConflictError`."""
        argv = (*_confinement(self.uid), *self.fixed(names), *_surroundings(self.spec, around))
        title = f"passt of {self.reservation.machine} on network {self.spec.name}"
        return Program(title, argv, str(self.socket), self.uid)

    def fixed(self, names: Names) -> tuple[str, ...]:
        """Its arguments but for `Surroundings`: one that begins so does as well as a new one."""
        spec, mine = self.spec, self.reservation
        words = [require_program("passt", "passt"), "--quiet", "--one-off", "--no-map-gw"]
        words += ["--socket", str(self.socket), "--log-file", f"{self.socket}.log"]
        words += ["--mac-addr", names.mac(spec.name), "--mtu", str(spec.mtu)]
        if mine.ipv4 and spec.ipv4:
            bits = ipaddress.IPv4Network(spec.ipv4).prefixlen
            words += ["--address", mine.ipv4, "--netmask", str(bits), "--gateway", spec.gateway4]
        if mine.ipv6:
            words += ["--address", mine.ipv6, "--gateway", ROUTER]
        if not mine.ipv4 or not mine.ipv6:
            words.append("--ipv4-only" if mine.ipv4 else "--ipv6-only")
        if not spec.dhcp:
            words += ["--no-dhcp", "--no-dhcpv6", "--no-ra"]
        return (*words, *_ports(self.forwards))


def answered_for(spec: NetworkSpec) -> tuple[str, ...]:
    """The addresses of a network of mode `user` that belong to the way out."""
    return tuple(filter(None, (spec.gateway4, ROUTER if spec.ipv6 else "")))


def surroundings(routes: Iterable[Route]) -> Surroundings:
    """What passt is to know of this host, whose routes these are."""
    ways = (
        route.interface
        for route in routes
        if route.destination.version == 6 and not route.destination.prefixlen
    )
    return Surroundings(next(ways, "lo"), resolvers())


def resolvers(files: Sequence[Path] = _RESOLV_CONF) -> tuple[str, ...]:
    """The host's name servers that a guest can ask: not those on its loopback interface.

    Where there are only such, systemd-resolved's list of what it asks itself, if it runs.
    """
    for file in files:
        try:
            found = tuple(_nameservers(file.read_text(errors="replace")))
        except OSError:
            continue
        if found:
            return found[:RESOLVERS]
    return ()


def _nameservers(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        if not (address.is_loopback or address.is_link_local or address.is_unspecified):
            yield str(address)


def _surroundings(spec: NetworkSpec, around: Surroundings) -> Iterator[str]:
    yield from ("--interface", around.interface, "--search", "none")
    usable = [one for one in around.resolvers if (spec.ipv6 if ":" in one else spec.ipv4)]
    for address in usable if spec.dns else ():
        yield from ("--dns", address)
    if not usable or not spec.dns:
        yield from ("--dns", "none")


def _confinement(uid: int) -> Iterator[str]:
    yield from (require_program("prlimit", "util-linux"), "--core=0", f"--as={_MEMORY_LIMIT}", "--")
    if os.geteuid() == 0:
        yield from (require_program("setpriv", "util-linux"), f"--reuid={uid}", f"--regid={uid}")
        yield from ("--clear-groups", "--inh-caps=-all", "--no-new-privs", "--")


def _ports(forwards: Iterable[Forward]) -> Iterator[str]:
    """passt takes a port of the host once for each protocol, on one address or on all."""
    taken: dict[tuple[str, int], Forward] = {}
    for forward in forwards:
        other = taken.setdefault((forward.protocol, forward.host_port), forward)
        if other is forward:
            where = f"{forward.host_address}/" if forward.host_address else ""
            option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
            yield from (option, f"{where}{forward.host_port}:{forward.machine_port}")
        elif (other.host_address, other.machine_port) != (forward.host_address, forward.machine_port):
            port = f"port {forward.host_port}/{forward.protocol} of the host"
            raise ConflictError(
                f"{forward.machine}: {port} is forwarded twice, and passt takes a port once",
                hint="leave its addresses out for all of them, or choose another port",
                machine=forward.machine,
            )
