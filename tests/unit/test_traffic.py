"""Forwards, rules and addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.traffic import PortForward, Rule, parse_address, parse_forward, parse_rule, parse_subnet

_ports = st.integers(1, 65535)
_addresses = st.one_of(st.just(""), st.ip_addresses().filter(lambda one: not one.is_unspecified).map(str))
_peers = st.one_of(st.sampled_from(["any", "group:web"]), st.ip_addresses(v=4).map(lambda one: f"{one}/32"))


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", PortForward("", 8080, 80, "tcp")),
        ("8080:80/udp", PortForward("", 8080, 80, "udp")),
        ("127.0.0.1:2222:22/tcp", PortForward("127.0.0.1", 2222, 22, "tcp")),
        ("[::1]:2222:22", PortForward("::1", 2222, 22, "tcp")),
        ("0.0.0.0:80:80", PortForward("", 80, 80, "tcp")),
    ],
)
def test_a_forward_reads_as_docker_has_it(text: str, forward: PortForward) -> None:
    assert parse_forward(text) == forward


@pytest.mark.parametrize("text", ["", "80", "80:80/sctp", "0:80", "80:65536", "300.0.0.1:80:80", "::1:80:80"])
def test_what_is_no_forward_is_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"no port forward|not a port|not an IP address"):
        parse_forward(text)


@given(st.builds(PortForward, _addresses, _ports, _ports, st.sampled_from(["tcp", "udp"])))
def test_a_forward_reads_back_as_it_was_written(forward: PortForward) -> None:
    assert parse_forward(str(forward)) == forward


def test_forwards_clash_where_one_packet_could_be_meant_for_both() -> None:
    everywhere, here = parse_forward("80:1"), parse_forward("127.0.0.1:80:2")
    assert everywhere.clashes(here) and here.clashes(everywhere) and here.clashes(here)
    assert not here.clashes(parse_forward("127.0.0.2:80:2"))
    assert not here.clashes(parse_forward("127.0.0.1:80:2/udp"))
    assert not here.clashes(parse_forward("127.0.0.1:81:2"))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("any", Rule("any")),
        ("icmp", Rule("icmp")),
        ("tcp", Rule("tcp")),
        ("tcp:80", Rule("tcp", (80, 80))),
        ("udp:5000-5010@group:web", Rule("udp", (5000, 5010), "group:web")),
        ("tcp:22@10.0.0.0/8", Rule("tcp", (22, 22), "10.0.0.0/8")),
        ("tcp@10.1.2.3", Rule("tcp", None, "10.1.2.3/32")),
        ("any@fd00::/8", Rule("any", None, "fd00::/8")),
    ],
)
def test_a_rule_reads(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no rule; write"),
        ("sctp:80", "is no rule; write"),
        ("icmp:8", "icmp has no ports"),
        ("any:80", "any has no ports"),
        ("tcp:90-80", "90 is above 80"),
        ("tcp:0", "0 is not a port"),
        ("tcp:80@10.0.0.1/8", "host bits set"),
        ("tcp:80@group:No", "is not any, a range of addresses or group:NAME"),
    ],
)
def test_what_is_no_rule_says_what_is(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_rule(text)


@given(st.sampled_from(["tcp", "udp"]), st.none() | st.tuples(_ports, _ports), _peers)
def test_a_rule_reads_back_as_it_was_written(protocol: str, ports: tuple[int, int] | None, peer: str) -> None:
    rule = Rule("udp" if protocol == "udp" else "tcp", (min(ports), max(ports)) if ports else None, peer)
    assert parse_rule(str(rule)) == rule


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_forward, parse_rule, parse_address, lambda one: parse_subnet(one, 4)):
        try:
            parse(text)
        except ValueError as error:
            assert str(error)


def test_ranges_and_addresses_are_canonical() -> None:
    assert parse_address("FD00:0::1", 6) == "fd00::1"
    assert parse_subnet("FD00:0:0:1::/64", 6) == "fd00:0:0:1::/64"
    assert (parse_subnet("auto", 4), parse_subnet(None, 4), parse_subnet("none", 4)) == ("auto", None, None)
