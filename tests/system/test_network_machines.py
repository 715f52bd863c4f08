"""Machines on the default network of a namespace: addresses, names, a forward, a killed worker."""

from __future__ import annotations

import os
import signal
import time

import pytest

from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.boxes import create, until_it_answers
from nagaya.testing.netns import Namespace

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
PAGE = "a page of two"
SERVE = f"mkdir /tmp/w && echo {PAGE} > /tmp/w/index.html && httpd -p 80 -h /tmp/w"


@pytest.mark.anyio
async def test_machines_of_the_default_network(inside: Client, host: Namespace, paths: Paths) -> None:
    one = create(inside, "one")
    two = create(inside, "two", ports=["127.0.0.1:8080:80"])
    assert two.exec(["sh", "-c", SERVE]).exit_code == 0
    for family in "46":
        until_it_answers(one, f"ping -{family} -c 1 -W 1 two.nagaya.internal")
    assert until_it_answers(one, "wget -q -O - http://two/").strip() == PAGE
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == PAGE
    counted = inside.usage()
    assert counted.machines[0].nics[0].tx_bytes > 500
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        worker = next(each for each in await plane.query_workers() if each.name == "net-default")
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
        for family in "46":
            until_it_answers(one, f"ping -{family} -c 1 -W 1 two.nagaya.internal")
    (nic,), (was,) = inside.usage().machines[0].nics, counted.machines[0].nics
    assert nic.tx_packets > was.tx_packets, "counters outlive the worker"
    assert nic.rx_bytes > was.rx_bytes
    two.delete(force=True)
    with pytest.raises(Exception, match="exit status 7"):
        host.run("curl -s -m 5 http://127.0.0.1:8080/")
    one.delete(force=True)
    assert "ngy" not in host.run("ip link; nft list tables")


def test_a_group_lets_in_what_it_lists_and_an_isolated_network_has_no_way_out(
    inside: Client, host: Namespace
) -> None:
    inside.groups.create("web", inbound=["tcp:80"])
    inside.groups.create("closed")
    inside.networks.create({"name": "back", "mode": "isolated"})
    web = create(inside, "web", nics=[{"groups": ["web"]}, {"network": "back"}])
    db = create(inside, "db", nics=[{"network": "back"}])
    other = create(inside, "other", nics=[{"groups": ["closed"]}])
    assert web.exec(["sh", "-c", f"{SERVE} && httpd -p 81 -h /tmp/w"]).exit_code == 0
    for machine in (db, other):
        assert machine.exec(["sh", "-c", SERVE]).exit_code == 0
    front, back, hidden = (nic["ipv4"] for machine in (web, db) for nic in machine.refresh().info.nics)
    assert until_it_answers(other, f"wget -q -O - http://{front}/").strip() == PAGE
    assert until_it_answers(web, f"wget -q -O - http://{hidden}/").strip() == PAGE
    assert host.run(f"curl -s -m 5 http://{front}/").strip() == PAGE
    gateways = {one.name: one.gateway4 for one in inside.networks.list()}
    refused = {
        "a port that no rule lists": (other, f"{front}:81"),
        "a machine that allows nothing": (web, inside.machines.get("other").info.address),
        "another network": (other, hidden),
        "the way back into another network": (db, front),
        "its own way back": (other, back),
    }
    for why, (machine, address) in refused.items():
        tried = machine.exec(["timeout", "2", "wget", "-q", "-O", "-", f"http://{address}/"])
        assert tried.exit_code in (1, 124, 143), (why, tried)
    assert db.exec(["ping", "-c", "1", "-W", "1", gateways["default"]]).exit_code
    dropped = {port.id: port.drops for port in inside.networks.ports("default")}
    assert dropped["web/net0"]["security"] and dropped["other/net0"]["security"], dropped


def test_a_daemon_that_was_killed_finds_its_networks_and_forwards_again(
    inside: Client, host: Namespace, paths: Paths
) -> None:
    machine = create(inside, "web", ports=["8080:80"])
    assert machine.exec(["sh", "-c", SERVE]).exit_code == 0
    address = machine.info.address
    until_it_answers(machine, f"ping -c 1 -W 1 {inside.networks.get('default').gateway4}")
    os.kill(inside.host().daemon_pid, signal.SIGKILL)
    assert host.run("curl -s -m 5 http://127.0.0.1:8080/").strip() == PAGE, "nobody notices"
    ensure_daemon(paths)
    assert inside.networks.get("default").state == "up"
    assert inside.machines.get("web").info.address == address
    second = create(inside, "second")
    assert until_it_answers(second, "wget -q -O - http://web/").strip() == PAGE
    for name in ("web", "second"):
        inside.machines.get(name).delete(force=True)
    assert "ngy" not in host.run("ip link; nft list tables")


def size(machine: Machine, path: str) -> int:
    return int(machine.exec(["stat", "-c", "%s", path]).stdout)


def test_a_connection_ends_when_its_group_allows_it_no_more_and_a_cable_is_pulled_live(
    inside: Client,
) -> None:
    inside.groups.create("web", inbound=["tcp:80", "icmp"])
    web = create(inside, "web", nics=[{"groups": ["web"]}])
    other = create(inside, "other")
    endless = "(while echo tick; do sleep 0.05; done | nc -l -p 80) >/dev/null 2>&1 </dev/null &"
    assert web.exec(["sh", "-c", endless]).exit_code == 0
    until_it_answers(other, "ping -c 1 -W 1 web")
    assert other.exec(["sh", "-c", "nc web 80 >/tmp/ticks 2>/dev/null </dev/null &"]).exit_code == 0
    until_it_answers(other, "test -s /tmp/ticks")
    inside.groups.set("web", inbound=["icmp"])
    had = size(other, "/tmp/ticks")
    until_it_answers(other, "ping -c 3 -W 1 web")
    assert size(other, "/tmp/ticks") - had < 20, "less than a second of ticks, in two seconds of pings"
    assert other.exec(["sh", "-c", "timeout 1 nc web 80 </dev/null"]).exit_code != 0
    deadline = time.monotonic() + 30
    while not inside.networks.ports_of("web")[0].drops.get("security"):
        assert time.monotonic() < deadline, "its retries are dropped and counted"
        time.sleep(0.2)

    carrier = "cat /sys/class/net/eth0/carrier"
    assert until_it_answers(web, carrier).strip() == "1"
    inside.networks.set_link("web", "net0", up=False)
    until_it_answers(web, f'test "$({carrier})" = 0')
    assert other.exec(["ping", "-c", "1", "-W", "1", "web"]).exit_code
    inside.networks.set_link("web", "net0", up=True)
    until_it_answers(web, f'test "$({carrier})" = 1')
    until_it_answers(other, "ping -c 1 -W 1 web")
