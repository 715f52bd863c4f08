"""Networks on a host: namespaces play the host, its guests and the world."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import ConflictError, NotFoundError, UnsupportedError
from nagaya.networks.config import Forward, Instance, Reservation
from nagaya.networks.host import HostNetworks
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Hub, Namespace, snapshot
from nagaya.testing.scratch import make_directory

pytestmark = pytest.mark.root
UID = 0x7FFE0000

NAT = NetworkSpec(name="default", mode="nat", ipv4="10.77.0.0/24", ipv6="fd77::/64")
WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", "fd77::5054:ff:fe00:5")
DB = Reservation("db", "52:54:00:00:00:06", "10.77.0.6", "fd77::5054:ff:fe00:6")


@dataclass
class Site:
    """A host with a world behind its `eth0`, and guests."""

    paths: Paths
    host: Namespace
    world: Namespace
    hub: Hub
    guests: dict[str, Namespace] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def guest(self, one: Reservation, *, configured: bool = True) -> Namespace:
        """A guest at the hub; `configured`, it has its addresses already and a route to the host."""
        place = self.guests[one.machine] = Namespace()
        self.hub.plug(place, "eth0", one.mac)
        if configured:
            place.run(f"ip addr add {one.ipv4}/24 dev eth0; ip route add default via 10.77.0.1")
            place.run(f"ip addr add {one.ipv6}/64 dev eth0 nodad; ip route add default via fe80::1 dev eth0")
        return place


@pytest.fixture
def site() -> Iterator[Site]:
    """A host 192.0.2.1 and a world 192.0.2.9; this thread is in the host while the test runs."""
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    paths.run.mkdir(mode=0o755)
    top.chmod(0o755)
    with Namespace() as host, Namespace() as world, Hub() as hub:
        one = Site(paths, host, world, hub)
        for place in (host, world):
            place.run("sysctl -q net.ipv6.conf.default.accept_dad=0")
        host.wire("eth0", world, "eth0")
        host.run("ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad")
        host.run("ip route add default via 192.0.2.9; ip route add default via 2001:db8::9")
        world.run("ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad")
        try:
            with host.entered():
                yield one
        finally:
            for server in one.servers:
                server.kill()
                server.communicate()
            for guest in one.guests.values():
                guest.close()
            with host.entered():
                asyncio.run(_clear(paths))
            shutil.rmtree(top)


async def _clear(paths: Paths) -> None:
    networks = HostNetworks(paths, UID)
    await networks.sweep([])
    await networks.close()


def run(site: Site, test: Callable[[HostNetworks], Coroutine[Any, Any, None]]) -> None:
    """Run `test` with the networks of a daemon on the site's host."""

    async def whole() -> None:
        networks = HostNetworks(site.paths, UID)
        try:
            await test(networks)
        finally:
            await networks.close()

    asyncio.run(whole())


def reaches(place: Namespace, address: str) -> bool:
    """Whether a ping is answered."""
    return "1 packets received" in place.run(f"busybox ping -c 1 -W 3 {address}", check=False)


def test_a_guest_reaches_host_and_world_as_the_host(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [WEB])
        assert uplink.kind == "tap"
        site.hub.plug(site.host, uplink.interface)
        guest = site.guest(WEB)
        assert reaches(guest, "10.77.0.1")
        assert reaches(guest, "fe80::1%eth0")
        assert reaches(guest, "192.0.2.9")
        assert reaches(guest, "2001:db8::9")

    run(site, test)


def test_nothing_is_left_after_removal(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        before = snapshot(site.host)
        await networks.ensure(NAT, [WEB], [Forward("tcp", "", 8080, "10.77.0.5", 80)])
        assert snapshot(site.host) != before
        await networks.remove("default")
        assert snapshot(site.host) == before
        assert await networks.present() == []

    run(site, test)


LEASE = """#!/bin/sh
[ "$1" = bound ] && echo "$ip/$mask via $router dns $dns domain $domain mtu $mtu name $hostname"
"""


def dhcp(site: Site, guest: Namespace) -> str:
    """What a DHCP client of the guest is told; "" if nobody answers."""
    script = site.paths.run / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    return guest.run(
        f"busybox udhcpc -i eth0 -n -q -t 3 -T 1 -O mtu -s {script} 2>/dev/null", check=False
    ).strip()


def test_machines_get_the_addresses_and_names_that_are_reserved_for_them(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [WEB])
        site.hub.plug(site.host, uplink.interface)
        web = site.guest(WEB, configured=False)
        assert dhcp(site, web) == (
            "10.77.0.5/24 via 10.77.0.1 dns 10.77.0.1 domain nagaya.internal mtu 1500 name web"
        )
        db = site.guest(DB, configured=False)
        assert dhcp(site, db) == "", "a stranger got an address"
        pid = networks.helpers("default")[0].pid
        await networks.ensure(NAT, [WEB, DB])
        assert dhcp(site, db).startswith("10.77.0.6/24")
        assert networks.helpers("default")[0].pid == pid, "a new reservation restarted dnsmasq"

    run(site, test)


def test_names_of_machines_are_found_both_ways(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [WEB, DB])
        site.hub.plug(site.host, uplink.interface)
        web = site.guest(WEB)

        def ask(name: str) -> str:
            return web.run(f"busybox nslookup {name} 10.77.0.1", check=False)

        assert "10.77.0.6" in ask("db.nagaya.internal")
        assert "fd77::5054:ff:fe00:6" in ask("db.nagaya.internal")
        assert "db.nagaya.internal" in ask("10.77.0.6")
        assert "db.nagaya.internal" in ask("fd77::5054:ff:fe00:6")
        await networks.ensure(NAT, [WEB])
        assert "10.77.0.6" not in ask("db.nagaya.internal")

    run(site, test)


def test_a_machine_is_told_who_it_is(site: Site) -> None:
    web = replace(WEB, instance=Instance("i-1", ("ssh-ed25519 AAAA me",), "#cloud-config\n"))

    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [web, DB])
        site.hub.plug(site.host, uplink.interface)
        guest, stranger = site.guest(web), site.guest(DB)

        def get(path: str, place: Namespace = guest) -> str:
            return place.run(f"curl -s -m 5 http://169.254.169.254{path}", check=False)

        assert get("/latest/meta-data/instance-id") == "i-1"
        assert get("/latest/meta-data/local-hostname") == "web.nagaya.internal"
        assert get("/latest/meta-data/public-keys/0/openssh-key") == "ssh-ed25519 AAAA me"
        assert get("/latest/user-data") == "#cloud-config\n"
        assert "i-1" in guest.run("curl -s -m 5 'http://[fd00:ec2::254]/nocloud/meta-data'")
        assert get("/latest/meta-data/instance-id", stranger) == "there is nothing\n"
        ask = "curl -s -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60'"
        token = guest.run(f"{ask} 169.254.169.254/latest/api/token")
        assert guest.run(f"curl -s -H 'X-aws-ec2-metadata-token: {token}' 169.254.169.254/latest/user-data")
        assert "expired" in guest.run(
            "curl -s -H 'X-aws-ec2-metadata-token: QUJD' 169.254.169.254/latest/user-data"
        )

    run(site, test)


def fetch(place: Namespace, url: str) -> str:
    """What curl gets, or "" if it gets nothing in two seconds."""
    return place.run(f"curl -s -m 2 {url}", check=False)


def serve(site: Site, place: Namespace, port: int, text: str) -> subprocess.Popen[bytes]:
    """A server on all addresses of `place`, of both families."""
    program = (
        "import http.server, socket, sys\n"
        "class Page(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        peer = self.client_address[0].removeprefix('::ffff:')\n"
        f"        self.wfile.write(f'{text} {{peer}}'.encode())\n"
        "class Server(http.server.ThreadingHTTPServer):\n"
        "    address_family = socket.AF_INET6\n"
        f"server = Server(('::', {port}), Page)\n"
        "print(flush=True)\n"
        "server.serve_forever()\n"
    )
    with place.entered():
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    site.servers.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_guest_reaches_no_service_of_the_host(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [WEB], [Forward("tcp", "", 8080, "10.77.0.5", 80)])
        site.hub.plug(site.host, uplink.interface)
        guest = site.guest(WEB)
        serve(site, site.host, 2000, "host")
        serve(site, site.world, 2000, "world")
        assert fetch(site.host, "http://127.0.0.1:2000") == "host 127.0.0.1"
        assert fetch(guest, "http://192.0.2.9:2000") == "world 192.0.2.1"
        assert fetch(guest, "http://[2001:db8::9]:2000") == "world 2001:db8::1"
        guest.run(
            "ip route add 127.0.0.5/32 via 10.77.0.1 dev eth0; sysctl -q net.ipv4.conf.all.route_localnet=1"
        )
        for address in (
            "10.77.0.1",
            "192.0.2.1",
            "127.0.0.5",
            "[fd77::1]",
            "[2001:db8::1]",
            "[fe80::1%25eth0]",
        ):
            assert fetch(guest, f"http://{address}:2000") == "", address

    run(site, test)


def test_a_forward_leads_from_world_and_host_to_the_machine(site: Site) -> None:
    forwards = [
        Forward("tcp", "", 8080, "10.77.0.5", 80, "web"),
        Forward("tcp", "", 8080, "fd77::5054:ff:fe00:5", 80, "web"),
        Forward("tcp", "127.0.0.1", 8081, "10.77.0.5", 80, "web"),
    ]

    async def test(networks: HostNetworks) -> None:
        uplink = await networks.ensure(NAT, [WEB], forwards)
        site.hub.plug(site.host, uplink.interface)
        serve(site, site.guest(WEB), 80, "page")
        assert fetch(site.world, "http://192.0.2.1:8080") == "page 192.0.2.9"
        assert fetch(site.world, "http://[2001:db8::1]:8080") == "page 2001:db8::9"
        assert fetch(site.host, "http://192.0.2.1:8080") == "page 192.0.2.1"
        assert fetch(site.host, "http://127.0.0.1:8080") == "page 10.77.0.1"
        assert fetch(site.host, "http://127.0.0.1:8081") == "page 10.77.0.1"
        assert fetch(site.world, "http://192.0.2.1:8081") == ""
        assert fetch(site.world, "http://10.77.0.5:80") == "", "the world knows a way without a forward"
        await networks.ensure(NAT, [WEB])
        assert fetch(site.world, "http://192.0.2.1:8080") == ""

    run(site, test)


def test_networks_of_one_host_are_closed_to_one_another(site: Site) -> None:
    other = NetworkSpec(name="other", mode="nat", ipv4="10.78.0.0/24", ipv6="fd78::/64")
    db = Reservation("db", "52:54:00:00:00:06", "10.78.0.6", "fd78::5054:ff:fe00:6")

    async def test(networks: HostNetworks) -> None:
        site.hub.plug(site.host, (await networks.ensure(NAT, [WEB])).interface)
        forwards = [Forward("tcp", "", 8080, "10.78.0.6", 80)]
        uplink = await networks.ensure(other, [db], forwards)
        with Hub() as hub:
            hub.plug(site.host, uplink.interface)
            web = site.guest(WEB)
            there = site.guests["db"] = Namespace()
            hub.plug(there, "eth0", db.mac)
            there.run("ip addr add 10.78.0.6/24 dev eth0; ip route add default via 10.78.0.1")
            serve(site, there, 80, "db")
            assert fetch(site.world, "http://192.0.2.1:8080") == "db 192.0.2.9"
            for url in ("10.78.0.6:80", "10.77.0.1:8080", "192.0.2.1:8080", "10.78.0.1:8080"):
                assert fetch(web, f"http://{url}") == "", url

    run(site, test)


def test_the_host_does_not_become_a_router_for_others(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        with Namespace() as lan:
            site.host.wire("lan", lan, "eth0")
            site.host.run("ip addr add 198.51.100.1/24 dev lan")
            lan.run("ip addr add 198.51.100.2/24 dev eth0; ip route add default via 198.51.100.1")
            site.world.run("ip route add 198.51.100.0/24 via 192.0.2.1")
            assert not reaches(site.world, "198.51.100.2")
            await networks.ensure(NAT, [WEB])
            assert not reaches(site.world, "198.51.100.2")
            assert not reaches(lan, "192.0.2.9")
            for place in (lan, site.world):
                names, values = (line.split() for line in place.run("grep Icmp: /proc/net/snmp").splitlines())
                assert dict(zip(names, values, strict=True))["InEchos"] == "0"

    run(site, test)


def test_a_port_that_is_taken_is_refused_with_the_name_of_its_owner(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        server = serve(site, site.host, 8080, "mine")
        before = snapshot(site.host)
        with pytest.raises(ConflictError, match=rf"8080/tcp.*in use by python.*{server.pid}"):
            await networks.ensure(NAT, [WEB], [Forward("tcp", "", 8080, "fd77::5054:ff:fe00:5", 80, "web")])
        taken, free = (Forward("tcp", "", port, "0.0.0.0", 80, "web") for port in (8080, 8081))
        with pytest.raises(ConflictError, match=rf"8080/tcp.*in use by python.*{server.pid}"):
            await networks.check_ports([free, taken])
        assert snapshot(site.host) == before
        await networks.check_ports([free])
        await networks.ensure(NAT, [WEB], [Forward("tcp", "", 8081, "10.77.0.5", 80, "web")])
        with pytest.raises(OSError, match="in use"), socket.socket() as late:
            late.bind(("0.0.0.0", 8081))
        await networks.check_ports([free])

    run(site, test)


def test_refusals_say_what_to_do(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        before = snapshot(site.host)
        for spec, error, words in (
            (NAT.model_copy(update={"uplink": "eth7"}), NotFoundError, "no interface eth7.*eth0"),
            (
                NAT.model_copy(update={"ipv4": "192.0.2.128/25"}),
                ConflictError,
                "overlaps 192.0.2.0/24, a route",
            ),
            (
                NetworkSpec(name="b", mode="bridge", uplink="eth0", ipv4=None, ipv6=None),
                ConflictError,
                "bridge",
            ),
            (
                NetworkSpec(name="b", mode="macvtap", uplink="eth0", ipv4=None, ipv6=None),
                ConflictError,
                "192.0",
            ),
        ):
            with pytest.raises(error, match=f"(?s){words}"):
                await networks.ensure(spec)
            assert snapshot(site.host) == before
        site.host.run(f"ip link add {networks.names.interface('default')} type bridge")
        with pytest.raises(ConflictError, match="not one of Nagaya's"):
            await networks.ensure(NAT)

    run(site, test)


FOREIGN = """
table inet theirs {
  chain forward {
    type filter hook forward priority 10; policy accept;
  }
}
table ip nat {
  chain POSTROUTING {
    type nat hook postrouting priority 100; policy accept;
    ip saddr 10.9.0.0/16 masquerade
  }
}
"""


def test_a_kill_at_any_moment_leaves_nothing_that_ensure_and_remove_do_not_mend(site: Site) -> None:
    forwards = [Forward("tcp", "", 8080, "10.77.0.5", 80)]
    other = NetworkSpec(name="other", mode="isolated", ipv4="10.78.0.0/24", ipv6="fd78::/64")
    web = replace(WEB, instance=Instance("i-1"))

    async def life(networks: HostNetworks) -> None:
        await networks.ensure(other, [])
        await networks.ensure(NAT, [web], forwards)
        await networks.ensure(NAT, [DB])
        await networks.remove("other")
        await networks.remove("default")

    def killed(seconds: float) -> None:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                run(site, life)
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    site.host.run(
        f"set -e\nnft -f - <<'E'\n{FOREIGN}\nE\nip link add br9 type bridge; ip addr add 10.9.0.1/16 dev br9"
    )
    before = snapshot(site.host)
    run(site, life)
    assert snapshot(site.host) == before
    for step in range(9):
        killed(0.1 * step)
        if step % 2:
            run(site, life)

            async def nothing(networks: HostNetworks) -> None:
                assert await networks.present() == []
        else:

            async def nothing(networks: HostNetworks) -> None:
                await networks.sweep([])

        run(site, nothing)
        assert snapshot(site.host) == before, f"killed after {0.1 * step:.1f} s"
        assert list(site.paths.run.glob("networks/*")) == []
        assert find_any(site) == []


def find_any(site: Site) -> list[str]:
    """The programs that serve networks of the site."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = entry.read_bytes()
            if str(site.paths.run / "networks").encode() in line:
                found.append(line.decode())
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test's own deadline ends it."""
    while not condition():  # noqa: ASYNC110 - another process makes it true
        await asyncio.sleep(0.05)


def test_networks_follow_the_host_to_another_uplink_and_outlive_a_flush(site: Site) -> None:
    async def test(networks: HostNetworks) -> None:
        with Namespace() as other:
            site.hub.plug(site.host, (await networks.ensure(NAT, [WEB])).interface)
            guest = site.guest(WEB)
            site.host.run("nft flush ruleset")
            await until(lambda: reaches(guest, "192.0.2.9"))
            site.host.wire("eth1", other, "eth0")
            site.host.run("ip addr add 203.0.113.1/24 dev eth1")
            other.run("ip addr add 203.0.113.9/24 dev eth0")
            assert not reaches(guest, "203.0.113.9"), "no route leads there"
            site.host.run("ip route replace default via 203.0.113.9; ip -6 route del default")
            await until(lambda: reaches(guest, "203.0.113.9"))
            assert not reaches(guest, "192.0.2.9")
            assert "0" in site.host.run("cat /proc/sys/net/ipv4/conf/eth0/forwarding")

    run(site, test)


def test_guests_on_a_bridge_are_part_of_the_host_s_own_network(site: Site) -> None:
    lan = NetworkSpec(name="lan", mode="bridge", uplink="br0", ipv4=None, ipv6=None)

    async def test(networks: HostNetworks) -> None:
        site.host.run("ip link add br0 type bridge; ip link set br0 mtu 1400 up; ip link set eth0 master br0")
        await until(lambda: "state UP" in site.host.run("ip link show br0"))
        before = snapshot(site.host)
        uplink = await networks.ensure(lan)
        assert (uplink.kind, uplink.mtu) == ("tap", 1400)
        assert "master br0" in site.host.run(f"ip link show {uplink.interface}")
        await networks.remove("lan")
        with pytest.raises(ConflictError, match="does not tell VLANs apart"):
            await networks.ensure(lan.model_copy(update={"vlan": 7}))
        assert snapshot(site.host) == before

    run(site, test)


def test_guests_of_an_isolated_network_reach_only_one_another_and_its_services(site: Site) -> None:
    spec = NetworkSpec(name="default", mode="isolated", ipv4="10.77.0.0/24", ipv6="fd77::/64")
    web = replace(WEB, instance=Instance("i-1"))

    async def test(networks: HostNetworks) -> None:
        site.hub.plug(site.host, (await networks.ensure(spec, [web, DB])).interface)
        guest, other = site.guest(web), site.guest(DB)
        assert reaches(guest, DB.ipv4)
        assert reaches(guest, "10.77.0.1")
        assert not reaches(guest, "192.0.2.9")
        assert fetch(guest, "http://169.254.169.254/latest/meta-data/instance-id") == "i-1"
        assert other.run("busybox nslookup web.nagaya.internal 10.77.0.1", check=False).count(WEB.ipv4) == 1
        guest.run("ip route flush default")
        assert dhcp(site, guest).startswith("10.77.0.5/24 via  dns")
        with pytest.raises(UnsupportedError, match="no ports are forwarded"):
            await networks.ensure(spec, [web], [Forward("tcp", "", 8080, "10.77.0.5", 80)])

    run(site, test)


def test_a_macvtap_takes_all_of_an_interface(site: Site) -> None:
    spec = NetworkSpec(name="direct", mode="macvtap", uplink="eth9", ipv4=None, ipv6=None)

    async def test(networks: HostNetworks) -> None:
        with Namespace() as other:
            site.host.wire("eth9", other, "eth0")
            site.host.run("ip addr flush dev eth9")
            before = snapshot(site.host)
            uplink = await networks.ensure(spec)
            assert uplink.kind == "macvtap"
            assert "macvtap mode passthru" in site.host.run(f"ip -d link show {uplink.interface}")
            await networks.remove("direct")
            assert snapshot(site.host) == before

    run(site, test)


def test_dnsmasq_that_dies_is_started_again_and_a_new_daemon_takes_over_the_old_one(site: Site) -> None:
    pids: list[int | None] = []

    async def first(networks: HostNetworks) -> None:
        site.hub.plug(site.host, (await networks.ensure(NAT, [WEB])).interface)
        [helper] = networks.helpers("default")
        assert helper.pid is not None
        status = site.host.run(f"cat /proc/{helper.pid}/status")
        assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
        assert "NoNewPrivs:\t1" in status
        before = helper.pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: helper.pid not in (None, before))
        assert dhcp(site, site.guest(WEB, configured=False)).startswith("10.77.0.5/24")
        pids.append(helper.pid)

    async def second(networks: HostNetworks) -> None:
        await networks.ensure(NAT, [WEB, DB])
        assert [helper.pid for helper in networks.helpers("default")] == pids
        assert dhcp(site, site.guest(DB, configured=False)).startswith("10.77.0.6/24")

    run(site, first)
    run(site, second)
