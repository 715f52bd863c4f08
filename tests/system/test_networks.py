"""Networks on a host: namespaces play the host, its guests and the world."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nagaya.errors import ConflictError, NotFoundError
from nagaya.networks.config import Forward, Instance, Reservation
from nagaya.networks.host import HostNetworks
from nagaya.networks.names import Names
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Hub, Namespace, snapshot
from nagaya.testing.site import DB, NAT, WEB, Site, dhcp, fetch, reaches, run

pytestmark = pytest.mark.root


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


def test_a_port_of_another_machine_is_refused_with_its_name(site: Site) -> None:
    first = Forward("tcp", "", 8080, "10.77.0.6", 80, "web")
    second = Forward("tcp", "", 8080, "10.77.0.5", 80, "db")

    async def test(networks: HostNetworks) -> None:
        await networks.ensure(NAT, [WEB, DB], [first])
        for forwards in ([first, second], [second, first]):
            with pytest.raises(ConflictError, match=r"port 8080/tcp of the host is web's"):
                await networks.ensure(NAT, [WEB, DB], forwards)

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


def test_what_a_kill_left_of_one_network_does_not_keep_another_from_coming_up(site: Site) -> None:
    left = Names(site.paths.run).directory / "other"

    async def test(networks: HostNetworks) -> None:
        left.mkdir(parents=True)
        await networks.ensure(NAT, [WEB])
        await networks.remove("default")
        assert await networks.sweep([]) == ["other"]
        assert not left.exists()

    run(site, test)


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
