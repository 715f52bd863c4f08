"""What passt is told."""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from pathlib import Path

import pytest

from nagaya.errors import ConflictError
from nagaya.networks.config import Forward, Reservation
from nagaya.networks.links import Route
from nagaya.networks.names import Names
from nagaya.networks.passt import Passt, Surroundings, answered_for, resolvers, surroundings
from nagaya.spec import NetworkSpec

NAMES = Names(Path("/run/nagaya"))
MAC = "52:54:00:12:34:56"


def network(**parts: object) -> NetworkSpec:
    return NetworkSpec.model_validate(
        {"name": "mine", "mode": "user", "ipv4": "10.77.0.0/24", "ipv6": "fd12::/64", **parts}
    )


def words(spec: NetworkSpec, *forwards: Forward, around: Surroundings | None = None) -> list[str]:
    ipv4, ipv6 = ("10.77.0.9" if spec.ipv4 else ""), ("fd12::9" if spec.ipv6 else "")
    passt = Passt(Path("/run/p"), 0, spec, Reservation("web", MAC, ipv4, ipv6), forwards)
    return list(passt.program(NAMES, around or Surroundings("lo", ())).argv)


def forward(protocol: str, host: str, port: int, machine: str = "10.77.0.9", to: int = 80) -> Forward:
    assert protocol in ("tcp", "udp")
    return Forward("udp" if protocol == "udp" else "tcp", host, port, machine, to, "web")


def values(argv: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]


def test_it_gives_the_machine_the_addresses_that_are_its_own() -> None:
    argv = words(network(mtu=1400))
    assert values(argv, "--address") == ["10.77.0.9", "fd12::9"]
    assert values(argv, "--gateway") == ["10.77.0.1", "fe80::1"] == list(answered_for(network()))
    assert values(argv, "--netmask") == ["24"]
    assert (values(argv, "--mtu"), values(argv, "--socket")) == (["1400"], ["/run/p/525400123456"])
    assert {"--no-map-gw", "--one-off"} <= set(argv)
    assert not {"--ipv4-only", "--ipv6-only", "--no-dhcp"} & set(argv)


@pytest.mark.parametrize(("family", "other"), [("ipv4", "ipv6"), ("ipv6", "ipv4")])
def test_a_network_of_one_family_has_no_other(family: str, other: str) -> None:
    argv = words(network(**{other: None}))
    assert f"--{family}-only" in argv
    assert len(values(argv, "--address")) == len(values(argv, "--gateway")) == 1
    assert len(answered_for(network(**{other: None}))) == 1


def test_without_dhcp_and_dns_it_tells_nothing() -> None:
    argv = words(network(dhcp=False, dns=False), around=Surroundings("eth0", ("192.0.2.53",)))
    assert {"--no-dhcp", "--no-dhcpv6", "--no-ra"} <= set(argv)
    assert values(argv, "--dns") == ["none"]


def test_a_port_is_open_once_on_its_address_or_on_all() -> None:
    both = [forward("tcp", "", 8080), forward("tcp", "", 8080, "fd12::9")]
    argv = words(network(), *both, forward("udp", "127.0.0.1", 53, to=5353), forward("tcp", "::1", 81))
    assert values(argv, "--tcp-ports") == ["8080:80", "::1/81:80"]
    assert values(argv, "--udp-ports") == ["127.0.0.1/53:5353"]
    with pytest.raises(ConflictError, match="web: port 80/tcp of the host is forwarded twice"):
        words(network(), forward("tcp", "127.0.0.1", 80), forward("tcp", "192.0.2.1", 80))


def test_resolvers_that_a_guest_can_ask(tmp_path: Path) -> None:
    local, real = tmp_path / "resolv.conf", tmp_path / "systemd"
    local.write_text("# nameserver 192.0.2.9\nnameserver 127.0.0.53\noptions edns0\n")
    real.write_text("nameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver\nnameserver 2001:db8::1 \n")
    assert resolvers([local, real]) == ("192.0.2.1", "2001:db8::1")
    assert resolvers([local, tmp_path / "none"]) == ()
    local.write_text("".join(f"nameserver 192.0.2.{number}\n" for number in range(1, 9)))
    assert resolvers([local, real]) == ("192.0.2.1", "192.0.2.2", "192.0.2.3")


def test_a_guest_is_told_resolvers_of_families_that_it_has() -> None:
    around = Surroundings("eth0", ("192.0.2.1", "2001:db8::1"))
    assert values(words(network(), around=around), "--dns") == list(around.resolvers)
    only = words(network(ipv6=None), around=around)
    assert (values(only, "--dns"), values(only, "--interface")) == (["192.0.2.1"], ["eth0"])
    assert values(words(network()), "--dns") == ["none"]


def test_it_is_ipv6_where_the_host_has_a_default_route_of_it() -> None:
    def route(span: str, interface: str) -> Route:
        return Route(ipaddress.ip_network(span), interface, gateway=True)

    four = [route("0.0.0.0/0", "eth0"), route("fd00::/64", "eth1")]
    assert surroundings(four).interface == "lo"
    assert surroundings([*four, route("::/0", "eth2")]).interface == "eth2"


def test_what_depends_on_the_host_comes_last() -> None:
    one = words(network(), around=Surroundings("lo", ()))
    other = words(network(), around=Surroundings("eth0", ("192.0.2.1",)))
    same = next(place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    assert one[same - 1] == "--interface"
    assert not {"--address", "--socket", "--gateway"} & set(one[same:])
