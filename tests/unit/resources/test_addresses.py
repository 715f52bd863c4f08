"""Which addresses NICs have."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import ConflictError, ResourceError, SpecError
from nagaya.resources.addresses import (
    choose_ipv4,
    choose_ipv6,
    choose_mac,
    free_range,
    interface_id,
    overlap,
    unique_prefix,
)
from nagaya.spec import NetworkSpec, Nic

RANGE = "10.77.0.0/28"
names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@given(st.lists(names, unique=True, min_size=13, max_size=13), st.integers(24, 28))
def test_addresses_are_unique_inside_and_never_the_hosts(machines: list[str], bits: int) -> None:
    span = f"10.77.0.0/{bits}"
    holders: dict[str, str] = {}
    for machine in machines:
        holders[choose_ipv4("back", span, machine, "", holders)] = machine
    assert len(holders) == len(machines)
    subnet = ipaddress.IPv4Network(span)
    assert all(ipaddress.IPv4Address(one) in list(subnet.hosts())[1:] for one in holders)


@given(names)
def test_the_same_name_has_the_same_addresses_again(name: str) -> None:
    first = choose_ipv4("back", RANGE, name, "", {})
    assert choose_ipv4("back", RANGE, name, "", {}) == first
    prefix = "fd00::/64"
    assert choose_ipv6("back", prefix, name, "", {}) == choose_ipv6("back", prefix, name, "", {})


def test_an_ipv6_address_is_the_one_that_a_guest_makes_of_its_mac_address() -> None:
    near = interface_id("52:54:00:0d:f8:2d")
    mine = "fd00::5054:ff:fe0d:f82d"
    assert choose_ipv6("back", "fd00::/64", "web", "", {}, near=near) == mine
    other = choose_ipv6("back", "fd00::/64", "web", "", {mine: "db"}, near=near)
    assert other not in (mine, "fd00::", "fd00::1")


def test_an_exhausted_range_says_so_and_who_has_it() -> None:
    holders: dict[str, str] = {}
    for number in range(13):
        holders[choose_ipv4("back", RANGE, f"m{number:02}", "", holders)] = f"m{number:02}"
    with pytest.raises(ResourceError, match=r"no address left: all 13 of 10.77.0.0/28 .* m00, .* and 5 more"):
        choose_ipv4("back", RANGE, "one", "", holders)


def test_a_wish_is_granted_or_refused_with_the_holder() -> None:
    assert choose_ipv4("back", RANGE, "web", "10.77.0.5", {}) == "10.77.0.5"
    with pytest.raises(ConflictError, match=r"10.77.0.5 is the address of db"):
        choose_ipv4("back", RANGE, "web", "10.77.0.5", {"10.77.0.5": "db"})
    for wish in ("10.77.0.0", "10.77.0.1", "10.77.0.15", "10.78.0.5"):
        with pytest.raises(SpecError, match="not an address for a machine of network back"):
            choose_ipv4("back", RANGE, "web", wish, {})
    assert choose_ipv6("back", "fd00::/64", "web", "fd00::5", {}) == "fd00::5"
    with pytest.raises(SpecError, match="not an address for a machine"):
        choose_ipv6("back", "fd00::/64", "web", "fd00::1", {})


def test_macs_are_locally_administered_and_never_twice() -> None:
    taken: set[str] = set()
    for number in range(500):
        taken.add(choose_mac("web/net0" if number < 250 else f"{number}", taken))
    assert len(taken) == 500
    assert all(Nic(mac=mac).mac.startswith("52:54:00:") for mac in taken)


def test_a_free_range_overlaps_nothing_that_is_used() -> None:
    assert free_range([]) == "10.77.0.0/24"
    assert free_range(["10.77.0.0/24", "10.77.1.128/25"]) == "10.77.2.0/24"
    assert free_range(["10.0.0.0/8"]) == "172.29.0.0/24"
    with pytest.raises(ResourceError, match="name a range that is free"):
        free_range(["0.0.0.0/0"])


def test_a_unique_prefix_is_unique_local_and_another_for_another_seed() -> None:
    first = unique_prefix("host/back", [])
    assert ipaddress.IPv6Network(first).is_private and first.startswith("fd")
    assert NetworkSpec(name="back", ipv6=first).ipv6 == first
    assert unique_prefix("host/back", [first]) != first != unique_prefix("host/front", [])


def test_an_overlap_is_found_in_its_family_only() -> None:
    assert overlap("10.77.0.0/24", ["fd00::/8", "10.0.0.0/8"]) == "10.0.0.0/8"
    assert overlap("10.77.0.0/24", ["10.78.0.0/24", "::/0"]) == ""
