"""Networks on a host: the modes beside nat, changes of the host, a dnsmasq that dies."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from nagaya.errors import ConflictError, UnsupportedError
from nagaya.networks.config import Forward, Instance
from nagaya.networks.host import HostNetworks
from nagaya.spec import NetworkSpec
from nagaya.testing.netns import Namespace, snapshot
from nagaya.testing.site import DB, NAT, UID, WEB, Site, dhcp, fetch, reaches, run, until

pytestmark = pytest.mark.root


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
