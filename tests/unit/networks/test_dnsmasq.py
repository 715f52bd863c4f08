"""What dnsmasq is told: its own program reads it, and no name adds a line."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nagaya.networks.config import Reservation
from nagaya.networks.dnsmasq import Dnsmasq
from nagaya.networks.programs import require_program
from nagaya.spec import NetworkSpec
from nagaya.testing.scratch import make_directory

WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", "fd77::5")
OPTIONS = {  # what a configuration may hold: anything else has come in by a name
    *(
        "interface",
        "except-interface",
        "bind-dynamic",
        "pid-file",
        "log-facility",
        "quiet-dhcp",
        "quiet-dhcp6",
    ),
    *("quiet-ra", "no-hosts", "addn-hosts", "local", "domain-needed", "bogus-priv", "cache-size"),
    *("dns-forward-max", "no-resolv", "port", "dhcp-authoritative", "leasefile-ro", "no-ping", "domain"),
    *("dhcp-hostsfile", "dhcp-ignore", "dhcp-ignore-names", "dhcp-range", "dhcp-lease-max", "dhcp-option"),
    *("enable-ra", "ra-param"),
}


@pytest.fixture(scope="module")
def dnsmasq() -> Iterator[Dnsmasq]:
    top = make_directory()
    yield Dnsmasq(top, os.geteuid())
    subprocess.run(["rm", "-r", str(top)], check=True)


def network(**parts: object) -> NetworkSpec:
    return NetworkSpec.model_validate({"name": "back", "ipv4": "10.77.0.0/24", "ipv6": "fd77::/64", **parts})


def written(dnsmasq: Dnsmasq, spec: NetworkSpec) -> list[str]:
    dnsmasq.write(spec, "ngy-0", spec.mtu)
    dnsmasq.write_hosts(spec, [WEB])
    return dnsmasq.config.read_text().splitlines()


@pytest.mark.parametrize("mode", ["nat", "routed", "isolated"])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"ipv6": None},
        {"ipv4": None},
        {"dhcp": False},
        {"dns": False},
        {"ipv4": "10.0.0.0/8"},
        {"mtu": 9000},
    ],
)
def test_the_program_reads_it(dnsmasq: Dnsmasq, mode: str, parts: dict[str, object]) -> None:
    lines = written(dnsmasq, network(mode=mode, **parts))
    program = require_program("dnsmasq", "dnsmasq-base")
    done = subprocess.run(
        [program, "--test", "-C", str(dnsmasq.config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "syntax check OK" in done.stderr
    assert {line.partition("=")[0] for line in lines if not line.startswith("#")} <= OPTIONS


def test_it_changes_with_what_matters_and_hosts_change_by_themselves(dnsmasq: Dnsmasq) -> None:
    spec = network()
    written(dnsmasq, spec)
    assert not dnsmasq.needs(spec, "ngy-0", spec.mtu)
    assert dnsmasq.needs(spec, "ngy-1", spec.mtu) and dnsmasq.needs(network(domain="x"), "ngy-0", spec.mtu)
    assert not dnsmasq.write_hosts(spec, [WEB])
    assert dnsmasq.write_hosts(spec, [WEB, Reservation("db", "52:54:00:00:00:06", "10.77.0.6")])


def test_an_isolated_network_names_no_router_and_asks_nobody(dnsmasq: Dnsmasq) -> None:
    lines = written(dnsmasq, network(mode="isolated"))
    assert {"no-resolv", "dhcp-option=option:router", "ra-param=*,0,0"} <= set(lines)
    assert "dhcp-option=option:router,10.77.0.1" in written(dnsmasq, network())


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_name_that_is_allowed_adds_a_line(dnsmasq: Dnsmasq, name: str, domain: str) -> None:
    try:
        spec = network(name=name or "back", domain=domain or "internal")
    except ValidationError:
        spec = network(domain=re.sub("[^a-z0-9]", "", domain)[:60] or "internal")
    lines = written(dnsmasq, spec)
    assert lines[0].startswith("# network ")
    assert {line.partition("=")[0] for line in lines[1:]} <= OPTIONS
    hosts = Path(dnsmasq.directory / "hosts").read_text().splitlines()
    assert len(hosts) == 4 and all(len(line.split()) == 2 for line in hosts)
    reservations = Path(dnsmasq.directory / "reservations").read_text().splitlines()
    assert reservations == ["52:54:00:00:00:05,10.77.0.5,[fd77::5],web"]


@pytest.mark.parametrize(
    "field",
    [
        {"domain": "a\nserver=6.6.6.6"},
        {"domain": "a,b"},
        {"domain": "a/#"},
        {"name": "x\ndhcp-script=/bin/sh"},
        {"uplink": 'a"b'},
        {"uplink": "eth*"},
        {"uplink": "a\nb"},
    ],
)
def test_what_could_is_refused(field: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        network(**field)
    with pytest.raises(ValidationError):
        network(**{key: value + "\n" for key, value in {"domain": "a", **field}.items()})
