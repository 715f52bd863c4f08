"""`nagaya network` and `nagaya group`: what they print, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def back(invoke: Invoke) -> Iterator[str]:
    """A network; none but the default one is left afterwards, and no group."""
    assert invoke("network", "create", "back", "--ipv4", "10.9.0.0/24", "--mode", "isolated").out == "back\n"
    yield "back"
    for machine in invoke("list", "-q").out.split():
        invoke("delete", machine, "--force", "--yes")
    for name in invoke("network", "list", "-q").out.split():
        invoke("network", "delete", name)
    for name in invoke("group", "list", "-q").out.split():
        invoke("group", "delete", name)


def test_networks_are_listed_shown_and_deleted(invoke: Invoke, back: str) -> None:
    table = invoke("network", "list").out.splitlines()
    assert table[0].split() == ["NAME", "MODE", "STATE", "IPV4", "IPV6", "UPLINK", "MACHINES"]
    assert table[1].split()[:4] == [back, "isolated", "down", "10.9.0.0/24"]
    assert "gateway4: 10.9.0.1" in invoke("network", "show", back).out
    refused = invoke("network", "create", back)
    assert (refused.status, "there is a network 'back' already" in refused.err) == (4, True)
    assert invoke("network", "delete", back).out == "back is deleted\n"
    missing = invoke("network", "show", back)
    assert (missing.status, "`nagaya network create back` makes it" in missing.err) == (3, True)


def test_fields_of_a_network_are_set(invoke: Invoke, back: str) -> None:
    assert "True    False" in invoke("network", "set", back, "dns=false").out.replace("true", "True").replace(
        "false", "False"
    )
    assert invoke("network", "set", back, "dns=false").out == "back has that already\n"
    wrong = invoke("network", "set", back, "mtu=90")
    assert (wrong.status, "must be at least 576" in wrong.err) == (2, True)


def test_a_machine_shows_its_address(invoke: Invoke, back: str) -> None:
    invoke("create", "busybox", "--name", "web", "--network", back)
    [row] = invoke("list", "--format", "json").json
    assert row["nics"][0]["ipv4"].startswith("10.9.0.")
    table = invoke("list").out.splitlines()
    assert "ADDRESS" in table[0].split()
    assert row["nics"][0]["ipv4"] in table[1].split()
    assert f"ipv4: {row['nics'][0]['ipv4']}" in invoke("show", "web").out
    refused = invoke("network", "delete", back)
    assert (refused.status, "network back is used by web" in refused.err) == (4, True)


def test_a_machine_without_a_network_and_one_with_ports(invoke: Invoke, back: str) -> None:
    invoke("create", "busybox", "--name", "lonely", "--network", "none")
    invoke("create", "busybox", "--name", "web", "-p", "8080:80", "--publish", "127.0.0.1:53:53/udp")
    machines = {row["name"]: row for row in invoke("list", "--format", "json").json}
    assert machines["lonely"]["nics"] == []
    assert machines["web"]["spec"]["ports"] == ["8080:80", "127.0.0.1:53:53/udp"]
    wrong = invoke("create", "busybox", "-p", "http:80")
    assert (wrong.status, "'http:80' is no port forward" in wrong.err) == (2, True)


def test_nics_are_connected_and_their_links_are_pulled(invoke: Invoke, back: str) -> None:
    invoke("create", "busybox", "--name", "web")
    assert invoke("network", "connect", "web", back, "--ipv4", "10.9.0.7", "--isolated").out.startswith(
        "web has net1 on back 10.9.0.7 fd"
    )
    assert invoke("network", "link", "web", "down", "--nic", "net1").out == "web net1: link down\n"
    invoke("start", "web")
    table = invoke("network", "ports", "web").out.splitlines()
    assert [line.split()[0] for line in table] == ["PORT", "web/net0", "web/net1"]
    assert [row["link"] for row in invoke("network", "ports", "web", "--format", "json").json] == [
        True,
        False,
    ]
    assert invoke("network", "ports", "default", "-q").out == "web/net0\nuplink\n"
    running = invoke("network", "disconnect", "web", "net0")
    assert (running.status, "net0 is not its last NIC" in running.err) == (4, True)
    assert invoke("network", "disconnect", "web", back).out == "web is off back\n"


def test_groups_are_made_set_and_deleted(invoke: Invoke, back: str) -> None:
    assert invoke("group", "create", "web", "--in", "tcp:80", "--in", "tcp:22@10.0.0.0/8").out == "web\n"
    table = invoke("group", "list").out.splitlines()
    assert table[1].split() == ["web", "tcp:80", "tcp:22@10.0.0.0/8", "any", "-"]
    assert invoke("group", "set", "web", "--out", "none").out == "web is set\n"
    [row] = invoke("group", "list", "--format", "json").json
    assert (row["inbound"], row["outbound"]) == (["tcp:80", "tcp:22@10.0.0.0/8"], [])
    wrong = invoke("group", "set", "web", "--in", "tcp:http")
    assert (wrong.status, "'tcp:http' is no rule" in wrong.err) == (2, True)
    assert invoke("group", "set", "web").status == 2
    invoke("create", "busybox", "--name", "b1", "--group", "web")
    assert "b1" in invoke("group", "show", "web").out
    assert invoke("group", "delete", "web").status == 4


def test_what_goes_through_is_shown(invoke: Invoke, back: str) -> None:
    invoke("create", "busybox", "--name", "web", "--network", "default", "--network", back)
    before = yaml.safe_load(invoke("show", "web").out)["nics"]
    assert ["sent" in nic for nic in before] == [False, False], "it does not run"
    invoke("start", "web")
    [front, hidden] = yaml.safe_load(invoke("show", "web").out)["nics"]
    assert (front["link"], front["sent"]) == ("up", "1000 B in 10 packets, now 0 B/s")
    shown = yaml.safe_load(invoke("network", "show", "default").out)
    assert shown["to and from the world"]["received"] == "1000 B in 10 packets, now 0 B/s"
    assert shown["machines"] == [f"web/net0 {front['ipv4']} {front['ipv6']} {front['mac']}"]
    assert "to and from the world" not in yaml.safe_load(invoke("network", "show", back).out)
    assert invoke("network", "show", back, "-q").out == "back\n"
    assert invoke("network", "show", back, "--format", "json").json["addresses"][0]["ipv4"] == hidden["ipv4"]
