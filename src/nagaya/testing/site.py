"""A host with networks in a namespace, with others that play its guests and the world."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from nagaya.networks.config import Reservation
from nagaya.networks.host import HostNetworks
from nagaya.paths import Paths
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Hub, Namespace
from nagaya.testing.scratch import make_directory

UID = 0x7FFE0000

NAT = NetworkSpec(name="default", mode="nat", ipv4="10.77.0.0/24", ipv6="fd77::/64")
WEB = Reservation("web", "52:54:00:00:00:05", "10.77.0.5", "fd77::5054:ff:fe00:5")
DB = Reservation("db", "52:54:00:00:00:06", "10.77.0.6", "fd77::5054:ff:fe00:6")

# What udhcpc runs.
_LEASE = """#!/bin/sh
[ "$1" = bound ] && echo "$ip/$mask via $router dns $dns domain $domain mtu $mtu name $hostname"
"""


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


@contextlib.contextmanager
def make_site() -> Iterator[Site]:
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


def dhcp(site: Site, guest: Namespace) -> str:
    """What a DHCP client of the guest is told; "" if nobody answers."""
    script = site.paths.run / "lease"
    script.write_text(_LEASE)
    script.chmod(0o755)
    return guest.run(
        f"busybox udhcpc -i eth0 -n -q -t 3 -T 1 -O mtu -s {script} 2>/dev/null", check=False
    ).strip()


def fetch(place: Namespace, url: str) -> str:
    """What curl gets, or "" if it gets nothing in two seconds."""
    return place.run(f"curl -s -m 2 {url}", check=False)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; the test's own deadline ends it."""
    while not condition():  # noqa: ASYNC110 - another process makes it true
        await asyncio.sleep(0.05)
