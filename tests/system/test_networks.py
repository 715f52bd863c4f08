"""Networks on a host: namespaces play the host, its guests and the world."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

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
        host.wire("eth0", world, "eth0")
        host.run("ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad")
        host.run("ip route add default via 192.0.2.9; ip route add default via 2001:db8::9")
        world.run("ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad")
        try:
            with host.entered():
                yield one
        finally:
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
    return "1 packets received" in place.run(f"busybox ping -c 1 -W 1 {address}", check=False)


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
