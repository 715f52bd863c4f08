"""The packet filter's table: what its text says, and that nft takes it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.networks.config import Forward
from nagaya.networks.rules import Area, Closed, listed, render
from nagaya.testing.netns import Namespace

TABLE, PREFIX = "nagaya_0000", "ngy-0000"
FORWARD = Forward("tcp", "", 8080, "10.77.0.5", 80, "web")


def area(number: int = 0, **parts: object) -> Area:
    known: dict[str, object] = {
        "name": f"n{number}",
        "interface": f"{PREFIX}{number:07}",
        "ipv4": f"10.{number}.0.0/24",
        "ipv6": f"fd00:{number}::/64",
        "outbound": True,
        "inbound": False,
        "masquerade": True,
        "dhcp": True,
        "dns": True,
        "metadata_port": 16925,
        "uplinks": ("eth0",),
        "forwards": (),
    }
    return Area(**{**known, **parts})  # type: ignore[arg-type]


def rules_of(script: str, chain: str) -> list[str]:
    body = script.split(f"chain {chain} {{\n")[1].split("\n  }", maxsplit=1)[0]
    return [line.strip() for line in body.splitlines()[1:]]


def test_it_replaces_its_own_table_and_touches_no_other() -> None:
    lines = render(TABLE, PREFIX, [area()], Closed()).splitlines()
    assert lines[:3] == [
        f"table inet {TABLE} {{}}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
    ]
    assert sum("table" in line for line in lines) == 3
    assert all("policy accept" in line for line in lines if "type " in line and "hook" in line)


def test_the_last_word_on_what_is_ours_is_no() -> None:
    script = render(TABLE, PREFIX, [area(), area(1, inbound=True, masquerade=False)], Closed())
    for way in ("iifname", "oifname"):
        assert f'{way} "{PREFIX}*" reject with icmpx admin-prohibited' in rules_of(script, "forward")[-2:]
    assert rules_of(script, "host")[-1] == "reject with icmpx admin-prohibited"


def test_the_world_comes_in_by_forwards_or_where_it_may() -> None:
    script = render(TABLE, PREFIX, [area(), area(1, inbound=True, forwards=(FORWARD,))], Closed())
    into = [rule for rule in rules_of(script, "forward") if rule.startswith('oifname "ngy-00000000001"')]
    assert into == [
        'oifname "ngy-00000000001" iifname != "ngy-*" ct status dnat accept',
        'oifname "ngy-00000000001" iifname { "eth0" } accept',
    ]
    assert not [rule for rule in rules_of(script, "forward") if rule.startswith('oifname "ngy-00000000000"')]


def test_a_network_of_one_family_sends_nothing_of_the_other() -> None:
    raw = rules_of(render(TABLE, PREFIX, [area(ipv6=None), area(1, ipv4=None)], Closed()), "raw")
    assert 'iifname "ngy-00000000000" meta nfproto ipv6 drop' in raw
    assert 'iifname "ngy-00000000001" meta nfproto ipv4 drop' in raw


@pytest.mark.parametrize(
    ("forward", "rule"),
    [
        (FORWARD, "meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.77.0.5:80"),
        (
            Forward("udp", "127.0.0.1", 53, "10.77.0.5", 53),
            "ip daddr 127.0.0.1 udp dport 53 dnat ip to 10.77.0.5:53",
        ),
        (Forward("tcp", "::1", 80, "fd00::5", 80), "ip6 daddr ::1 tcp dport 80 dnat ip6 to [fd00::5]:80"),
    ],
)
def test_a_forward_is_for_its_address_or_all_of_the_host(forward: Forward, rule: str) -> None:
    script = render(TABLE, PREFIX, [area(forwards=(forward,))], Closed())
    assert rule in rules_of(script, "incoming") and rule in rules_of(script, "local")


def test_what_was_closed_before_stays_closed_to_others() -> None:
    script = render(TABLE, PREFIX, [area()], Closed(frozenset({"eth0", "eth1"}), frozenset({"all"})))
    assert rules_of(script, "forward")[-2:] == [
        'iifname { "eth0", "eth1" } meta nfproto ipv4 drop',
        "meta nfproto ipv6 drop",
    ]


areas = st.builds(
    area,
    st.integers(0, 200),
    ipv6=st.sampled_from([None, "fd00:9::/64"]),
    outbound=st.booleans(),
    inbound=st.booleans(),
    masquerade=st.booleans(),
    dhcp=st.booleans(),
    dns=st.booleans(),
    uplinks=st.lists(
        st.from_regex(r"\A[^/\s:\"*\\\x00-\x1f\ud800-\udfff]{1,4}\Z"), max_size=2, unique=True
    ).map(tuple),
    forwards=st.lists(
        st.builds(
            Forward,
            st.sampled_from(["tcp", "udp"]),
            st.sampled_from(["", "192.0.2.1"]),
            st.integers(1, 65535),
            st.just("10.77.0.5"),
            st.integers(1, 65535),
        ),
        max_size=3,
    ).map(tuple),
)


@given(st.lists(areas, max_size=3, unique_by=lambda one: one.name))
def test_whatever_interfaces_are_called_the_text_keeps_its_form(found: list[Area]) -> None:
    script = render(TABLE, PREFIX, found, Closed())
    quoted = re.sub(r'"[^"\n]*"', "X", script)
    assert quoted.count("{") == quoted.count("}")
    assert not set(quoted) & set(";\"'$\\") - {";"}
    assert all(line.count(";") == ("policy accept;" in line) * 2 for line in quoted.splitlines())


@pytest.fixture(scope="module")
def place() -> Iterator[Namespace]:
    with Namespace() as place:
        yield place


@pytest.mark.root
@pytest.mark.parametrize("forwards", [(), (FORWARD, Forward("udp", "::1", 53, "fd00::5", 53))])
def test_nft_takes_it_and_lists_it(place: Namespace, forwards: tuple[Forward, ...]) -> None:
    script = render(TABLE, PREFIX, [area(uplinks=("a;b}", "$c'")), area(1, forwards=forwards)], Closed())
    with place.entered():
        for _ in range(2):  # in place of the first one
            subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)
        assert '"a;b}"' in listed(TABLE) and listed("nagaya_none") == ""
