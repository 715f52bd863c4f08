"""What a network needs of the host."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.networks import plan
from nagaya.networks.config import Forward, Instance, Reservation
from nagaya.networks.links import Link, Route
from nagaya.networks.names import Names
from nagaya.networks.plan import Record
from nagaya.networks.survey import overlaps
from nagaya.spec import NetworkSpec

NAMES = Names(Path("/run/nagaya"))
WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", instance=Instance("m1"))


def record(mode: str = "nat", **parts: object) -> Record:
    body = {"name": "n", "mode": mode, "ipv4": "10.77.0.0/24", "ipv6": "fd77::/64", **parts}
    return Record(NetworkSpec.model_validate(body), (WEB,))


def link(name: str, *, tunnel: bool = False) -> Link:
    return Link(1, name, "", 1500, "", vlans=False, master=0, up=True, point_to_point=tunnel)


def route(destination: str, interface: str, *, gateway: bool = False) -> Route:
    import ipaddress

    return Route(ipaddress.ip_network(destination), interface, gateway)


@pytest.mark.parametrize(
    ("mode", "parts", "tap", "served", "dnsmasq", "metadata"),
    [
        ("nat", {}, True, True, True, True),
        ("routed", {}, True, True, True, True),
        ("nat", {"dhcp": False, "dns": False}, True, True, False, True),
        ("isolated", {}, True, True, True, True),
        ("isolated", {"dhcp": False, "dns": False}, False, False, False, False),
        ("bridge", {"uplink": "br0", "ipv4": None, "ipv6": None}, True, False, False, False),
        ("macvtap", {"uplink": "eth0", "ipv4": None, "ipv6": None}, False, False, False, False),
        ("user", {}, False, False, False, False),
    ],
)
def test_what_the_host_has_of_a_network(
    mode: str, parts: dict[str, object], tap: bool, served: bool, dnsmasq: bool, metadata: bool
) -> None:
    one = record(mode, **parts)
    assert (one.has_tap, one.served, one.needs_dnsmasq, one.needs_metadata) == (
        tap,
        served,
        dnsmasq,
        metadata,
    )
    assert [str(each) for each in one.addresses()] == (["10.77.0.1/24", "fd77::1/64"] if served else [])


def test_the_world_is_behind_routers_and_tunnels() -> None:
    links = [link("eth0"), link("eth1"), link("wg0", tunnel=True), link("lo")]
    routes = [
        route("192.0.2.0/24", "eth0"),
        route("198.51.100.0/24", "eth1", gateway=True),
        route("203.0.113.0/24", "wg0"),
        route("0.0.0.0/0", "ppp0"),
        route("10.77.0.0/24", "ngy-00000000000", gateway=True),
        route("127.0.0.0/8", "lo", gateway=True),
        route("10.9.0.0/16", 'a"b', gateway=True),
    ]
    assert plan.ways_out(record(), links, routes) == ("eth1", "ppp0", "wg0")
    assert plan.ways_out(record(uplink="eth9"), links, routes) == ("eth9",)
    for mode in ("isolated", "user"):
        assert plan.ways_out(record(mode), links, routes) == ()


def test_only_routed_networks_are_forwarded_and_loopback_only_for_ports() -> None:
    assert set(plan.own_settings(record(), "x").values()) == {"1", "0"}
    assert plan.own_settings(record(), "x")["ipv4/conf/x/route_localnet"] == "0"
    forward = Forward("tcp", "", 80, "10.77.0.5", 80)
    published = Record(record().spec, (), (forward,))
    assert plan.own_settings(published, "x")["ipv4/conf/x/route_localnet"] == "1"
    assert set(plan.own_settings(record("isolated"), "x").values()) == {"0"}


def test_nobody_else_has_the_range() -> None:
    ranges = [route("10.0.0.0/8", "wg0"), route("10.77.0.0/24", "ngy-1"), route("::/0", "eth0")]
    (fact,) = overlaps([record(), record(name="m", ipv4="10.78.0.0/24")][:1], ranges)
    assert "10.77.0.0/24 overlaps 10.0.0.0/8" in fact.found


@given(st.sampled_from(["nat", "routed", "isolated", "user"]), st.booleans(), st.booleans())
def test_the_packet_filter_lets_out_what_is_routed_and_in_what_the_world_knows(
    mode: str, dhcp: bool, dns: bool
) -> None:
    area = plan.area(record(mode, dhcp=dhcp, dns=dns), NAMES, ("eth0",))
    assert area.outbound is (mode in ("nat", "routed"))
    assert (area.inbound, area.masquerade) == (mode == "routed", mode == "nat")
    assert (area.dhcp, area.dns) == (dhcp, dns)
