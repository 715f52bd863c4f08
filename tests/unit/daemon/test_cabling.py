"""Machines that start on networks, on fakes: what the host and the plane are told, and what is left."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nagaya.daemon import ports
from nagaya.daemon.daemon import Daemon
from nagaya.errors import ConflictError, NotFoundError, UnavailableError
from nagaya.models.machine import MachineState
from nagaya.paths import Paths
from nagaya.plane.config import Device, NetDevice
from nagaya.plane.ports import PortRules, SecurityRow
from nagaya.spec import MachineSpec, NetworkMode, NetworkSpec, Nic, SecurityGroup
from nagaya.testing import FakeNetworks, FakePlane, Stage, fake_parts


def spec(name: str = "web", **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


def host_of(daemon: Daemon) -> FakeNetworks:
    host = daemon.parts.networks
    assert isinstance(host, FakeNetworks)
    return host


def plane_of(daemon: Daemon) -> FakePlane:
    plane = daemon.parts.plane
    assert isinstance(plane, FakePlane)
    return plane


async def running(daemon: Daemon, name: str = "web", **parts: object) -> Any:
    await daemon.supervisor.create(spec(name, **parts))
    return await daemon.supervisor.start(name)


def test_a_network_comes_up_with_its_first_machine_and_goes_with_the_last(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        host, networks = host_of(daemon), daemon.supervisor.networks
        web = await running(daemon)
        assert networks.info(networks.get("default")).interface == "ngy-default"
        assert {"%default/uplink", f"{web.row.id}/net0"} < plane_of(daemon).devices.keys()
        db = await running(daemon, "db")
        names = [one["hostname"] for one in host.networks["default"]["reservations"]]
        assert names == ["db", "web"]
        await daemon.supervisor.stop("web")
        assert {"%default/uplink", f"{db.row.id}/net0"} < plane_of(daemon).devices.keys()
        await daemon.supervisor.stop("db")
        assert (host.networks, plane_of(daemon).devices) == ({}, {})
        assert networks.info(networks.get("default")).state == "down"

    stage.play(scene)


def test_a_port_may_send_from_its_own_addresses_only(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await running(daemon, nics=[{"isolated": True, "vlan": 7, "queues": 2}, {"spoof": True}])
        first, second = (plane_of(daemon).devices[f"{one.row.id}/net{n}"] for n in range(2))
        row = one.row.nics[0]
        assert (first["mac"], first["queues"], first["mtu"], first["link"]) == (row.mac, 2, 1500, True)
        rules = first["rules"]
        assert rules["addresses"] == [row.ipv4, row.ipv6]
        assert (rules["isolated"], rules["vlan"], rules["spoof"], rules["security"]) == (True, 7, False, None)
        assert second["rules"]["spoof"]
        hosts = [entry["hostname"] for entry in host_of(daemon).networks["default"]["reservations"]]
        assert hosts == ["web", "web-net1"]

    stage.play(scene)


def test_forwards_are_open_while_their_machine_runs(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        web = await running(daemon, ports=["8080:80", "127.0.0.1:53:53/udp"])
        await running(daemon, "db")
        row = web.row.nics[0]
        told = [
            (one["protocol"], one["host_address"], one["host_port"], one["machine_address"])
            for one in host_of(daemon).networks["default"]["forwards"]
        ]
        assert told == [
            ("tcp", "", 8080, row.ipv4),
            ("tcp", "", 8080, row.ipv6),
            ("udp", "127.0.0.1", 53, row.ipv4),
        ]
        await daemon.supervisor.kill("web")
        assert host_of(daemon).networks["default"]["forwards"] == []

    stage.play(scene)


@pytest.mark.parametrize("refused", ["net0", "uplink", "network", "console"])
def test_a_start_that_fails_leaves_nothing(stage: Stage, refused: str) -> None:
    async def scene(daemon: Daemon) -> None:
        host, plane = host_of(daemon), plane_of(daemon)
        plane.refuse.add(refused)
        host.refuse.update({"default"} if refused == "network" else set())
        with pytest.raises(UnavailableError, match="told to refuse"):
            await running(daemon)
        assert (host.networks, plane.devices) == ({}, {})
        one = daemon.supervisor.get("web")
        assert one.row.state is MachineState.FAILED
        networks = daemon.supervisor.networks
        assert networks.get("default").state == ("failed" if refused == "network" else "down")
        plane.refuse.clear()
        host.refuse.clear()
        await daemon.supervisor.start("web")
        assert networks.get("default").state == "up"

    stage.play(scene)


def test_an_isolated_network_has_no_uplink(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.networks.create(NetworkSpec(name="back", mode="isolated"))
        await running(daemon, nics=[{"network": "back"}])
        assert not any(key.startswith("%") for key in plane_of(daemon).devices)
        assert "back" in host_of(daemon).networks

    stage.play(scene)


def test_a_new_daemon_finds_its_networks_again_and_removes_what_nobody_uses(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await running(daemon)
        await daemon.supervisor.networks.create(NetworkSpec(name="back"))
        await host_of(daemon).ensure(daemon.supervisor.networks.get("back").spec, [], [])

    async def second(daemon: Daemon) -> None:
        assert host_of(daemon).networks.keys() == {"default"}
        assert "%default/uplink" in plane_of(daemon).devices
        assert daemon.supervisor.networks.get("default").state == "up"
        await daemon.supervisor.stop("web")
        assert (host_of(daemon).networks, plane_of(daemon).devices) == ({}, {})

    stage.play(first)
    stage.play(second)


def test_a_lost_plane_gets_its_uplink_again(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await running(daemon, restart="always")
        plane = plane_of(daemon)
        plane.lose_all()
        one = daemon.supervisor.get("web")
        await daemon.supervisor.wait("web", frozenset({MachineState.FAILED}), 5)
        await daemon.supervisor.wait("web", frozenset({MachineState.RUNNING}), 5)
        assert {"%default/uplink", f"{one.row.id}/net0"} < plane.devices.keys()

    stage.play(scene)


def test_a_changed_group_reaches_the_ports_that_are_in_it(stage: Stage) -> None:
    def of(rules: dict[str, Any], direction: str) -> list[tuple[str, Any, str]]:
        rows = [row for row in rules["security"] if row["direction"] == direction]
        return [(row["protocol"], row["ports"], row["peer"]) for row in rows]

    group = {"name": "web", "in": ["tcp:80", "tcp:22-23@group:ops"], "out": []}

    async def scene(daemon: Daemon) -> None:
        groups = daemon.supervisor.groups
        await groups.create(SecurityGroup.model_validate(group))
        one = await running(daemon, nics=[{"groups": ["web"]}])
        rules = plane_of(daemon).devices[f"{one.row.id}/net0"]["rules"]
        assert of(rules, "in") == [("tcp", [80, 80], "any"), ("tcp", [22, 23], "group:ops")]
        assert {row[0] for row in of(rules, "out")} == {"udp", "tcp"}, "what a guest needs to come up"
        await groups.put(SecurityGroup.model_validate({**group, "in": []}))
        rules = plane_of(daemon).devices[f"{one.row.id}/net0"]["rules"]
        assert of(rules, "in") == []

    stage.play(scene)


def allowed(daemon: Daemon) -> dict[str, list[int]]:
    """The ports that may be asked for, by machine."""
    return {
        one.name: [
            row["ports"][0]
            for row in plane_of(daemon).devices[f"{one.row.id}/net0"]["rules"]["security"]
            if row["direction"] == "in"
        ]
        for one in daemon.supervisor.all()
    }


def test_a_group_reaches_all_ports_or_none(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        groups = daemon.supervisor.groups
        await groups.create(SecurityGroup.model_validate({"name": "web", "in": ["tcp:80"]}))
        await running(daemon, "one", nics=[{"groups": ["web"]}])
        two = await running(daemon, "two", nics=[{"groups": ["web"]}])
        plane_of(daemon).refuse = {f"{two.row.id}/net0"}
        other = SecurityGroup.model_validate({"name": "web", "in": ["tcp:81"]})
        with pytest.raises(UnavailableError, match=r"security group web stays as it was: .* refuse"):
            await groups.put(other)
        assert allowed(daemon) == {"one": [80], "two": [80]}
        assert groups.get("web").inbound == ("tcp:80",)
        plane_of(daemon).refuse = set()
        assert await groups.put(other)
        assert allowed(daemon) == {"one": [81], "two": [81]}

    async def later(daemon: Daemon) -> None:
        assert daemon.supervisor.groups.get("web").inbound == ("tcp:81",)

    stage.play(scene)
    stage.play(later)


def test_a_new_daemon_tells_the_rules_that_the_last_one_could_not(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.groups.create(SecurityGroup.model_validate({"name": "web", "in": ["tcp:80"]}))
        one = await running(daemon, nics=[{"groups": ["web"]}])
        rules = PortRules(security=(SecurityRow("in", "tcp", (1, 1)),))
        await plane_of(daemon).set_port(f"{one.row.id}/net0", rules, link=True)
        assert allowed(daemon) == {"web": [1]}

    async def later(daemon: Daemon) -> None:
        assert allowed(daemon) == {"web": [80]}

    stage.play(scene)
    stage.play(later)


class SlowPlane(FakePlane):
    """It has heard the rules of a port, and is not done."""

    def __init__(self, paths: Paths) -> None:
        super().__init__(paths)
        self.heard, self.goes_on = asyncio.Event(), asyncio.Event()

    async def device_add(self, device: Device) -> None:
        if isinstance(device, NetDevice):
            self.heard.set()
            await self.goes_on.wait()
        await super().device_add(device)


def test_a_group_that_changes_while_a_machine_starts_is_not_missed(stage: Stage) -> None:
    plane = SlowPlane(stage.paths)

    async def scene(daemon: Daemon) -> None:
        groups = daemon.supervisor.groups
        await groups.create(SecurityGroup.model_validate({"name": "web", "in": ["tcp:80"]}))
        start = asyncio.create_task(running(daemon, nics=[{"groups": ["web"]}]))
        await plane.heard.wait()
        await groups.put(SecurityGroup.model_validate({"name": "web", "in": ["tcp:81"]}))
        plane.goes_on.set()
        await start
        assert allowed(daemon) == {"web": [81]}

    stage.play(scene, replace(fake_parts(stage.paths), plane=plane))


def test_a_cable_is_pulled_live_and_stays_so(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        one = await running(daemon)
        await ports.set_link(daemon.supervisor, "web", "net0", up=False)
        assert not plane_of(daemon).devices[f"{one.row.id}/net0"]["link"]
        [port] = await ports.ports_of(daemon.supervisor, "web")
        assert (port.id, port.link, port.tx_packets) == ("web/net0", False, 10)
        assert [port.id for port in await ports.ports(daemon.supervisor, "default")] == ["web/net0", "uplink"]
        await daemon.supervisor.stop("web")

    async def second(daemon: Daemon) -> None:
        one = await daemon.supervisor.start("web")
        assert not plane_of(daemon).devices[f"{one.row.id}/net0"]["link"]
        await ports.set_link(daemon.supervisor, "web", "default", up=True)
        assert plane_of(daemon).devices[f"{one.row.id}/net0"]["link"]
        events = [entry.event for entry in await daemon.supervisor.journal("web", 20)]
        assert ("link down" in events, events[-1]) == (True, "link up")
        plane_of(daemon).lose_all()
        with pytest.raises(NotFoundError):
            await ports.set_link(daemon.supervisor, "web", "net0", up=False)
        assert one.row.nics[0].link, "what the plane refused is undone"

    stage.play(first)
    stage.play(second)


def test_nics_come_and_go_while_the_machine_is_down_and_the_others_keep_their_addresses(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        await supervisor.networks.create(NetworkSpec(name="back", ipv4="10.9.0.0/24"))
        one = await supervisor.create(spec())
        await ports.connect(supervisor, "web", Nic(network="back", ipv4="10.9.0.7"))
        await ports.connect(supervisor, "web", Nic(network="back"))
        rows = one.row.nics
        assert [row.network for row in rows] == ["default", "back", "back"]
        assert rows[1].ipv4 == "10.9.0.7"
        with pytest.raises(ConflictError, match="has 2 NICs on network back"):
            await ports.disconnect(supervisor, "web", "back")
        await ports.disconnect(supervisor, "web", "default")
        assert one.row.nics == rows[1:]
        await ports.disconnect(supervisor, "web", "net0")
        assert one.row.nics == rows[2:]
        with pytest.raises(NotFoundError, match="web has no NIC 'net1'; it has: net0 on back"):
            await ports.disconnect(supervisor, "web", "net1")

    stage.play(scene)


def test_nics_come_to_a_machine_that_runs_and_its_networks_with_them(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor, plane, host = daemon.supervisor, plane_of(daemon), host_of(daemon)
        await supervisor.networks.create(NetworkSpec(name="back", ipv4="10.9.0.0/24"))
        one = await running(daemon)
        await ports.connect(supervisor, "web", Nic(network="back", ipv4="10.9.0.7"))
        assert plane.devices[f"{one.row.id}/net1"]["network"] == "back"
        assert {"%back/uplink", "%default/uplink"} < plane.devices.keys()
        assert [row["ipv4"] for row in host.networks["back"]["reservations"]] == ["10.9.0.7"]
        with pytest.raises(ConflictError, match="net0 is not its last NIC"):
            await ports.disconnect(supervisor, "web", "net0")
        await ports.disconnect(supervisor, "web", "back")
        assert (list(host.networks), "%back/uplink" in plane.devices) == (["default"], False)
        assert f"{one.row.id}/net1" not in plane.devices
        assert [entry.event for entry in await supervisor.journal("web", 2)] == ["connected", "disconnected"]
        await supervisor.stop("web")
        await supervisor.start("web")
        assert [row.network for row in one.row.nics] == ["default"]

    stage.play(scene)


@pytest.mark.parametrize("mode", ["nat", "user"])
def test_a_nic_that_cannot_be_plugged_leaves_nothing(stage: Stage, mode: NetworkMode) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor, plane, host = daemon.supervisor, plane_of(daemon), host_of(daemon)
        await supervisor.networks.create(NetworkSpec(name="back", mode=mode, ipv4="10.9.0.0/24"))
        one = await running(daemon)
        before = one.row, set(plane.devices), list(host.networks)
        plane.refuse.add("net1")
        with pytest.raises(UnavailableError):
            await ports.connect(supervisor, "web", Nic(network="back"))
        assert (one.row, set(plane.devices), list(host.networks)) == before
        assert host.private.there == {}

    stage.play(scene)


def test_a_port_too_many_goes_with_the_next_daemon(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await running(daemon)
        plane, name = plane_of(daemon), f"{one.row.id}/net0"
        [port] = daemon.supervisor.cabling.devices(one.row, daemon.supervisor.engine_machine(one))
        await plane.device_add(replace(port, id=f"{one.row.id}/net1"))
        assert name in plane.devices

    async def later(daemon: Daemon) -> None:
        one, plane = daemon.supervisor.get("web"), plane_of(daemon)
        for _ in range(1000):
            if f"{one.row.id}/net1" not in plane.devices:
                break
            await asyncio.sleep(0.01)
        assert f"{one.row.id}/net1" not in plane.devices
        assert (f"{one.row.id}/net0" in plane.devices, one.row.state) == (True, MachineState.RUNNING)

    stage.play(scene)
    stage.play(later)


def test_with_mode_user_each_nic_has_a_way_out_of_its_own(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        ways = host_of(daemon).private
        await daemon.supervisor.networks.create(NetworkSpec(name="mine", mode="user"))
        web = await running(daemon, ports=["8080:80"], nics=[{"network": "mine"}])
        db = await running(daemon, "db", nics=[{"network": "mine"}])
        device = plane_of(daemon).devices[f"%{web.row.id}/net0"]
        assert (device["port"], device["kind"]) == (f"{web.row.id}/net0", "stream")
        assert list(device["addresses"]) == ["10.77.0.1", "fe80::1"]
        assert [forward.host_port for forward in ways.there[web.row.nics[0].mac]] == [8080, 8080]
        assert ways.there[db.row.nics[0].mac] == ()
        assert host_of(daemon).networks["mine"]["forwards"] == [], "they are not the packet filter's"
        await daemon.supervisor.stop("web")
        assert list(ways.there) == [db.row.nics[0].mac]
        assert f"%{web.row.id}/net0" not in plane_of(daemon).devices
        await daemon.supervisor.stop("db")
        assert (ways.there, plane_of(daemon).devices, host_of(daemon).networks) == ({}, {}, {})

    stage.play(scene)


def test_a_way_out_that_was_started_again_is_connected_again(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        ways = host_of(daemon).private
        await daemon.supervisor.networks.create(NetworkSpec(name="mine", mode="user"))
        web = await running(daemon, nics=[{"network": "mine"}])
        plane, way = plane_of(daemon), f"%{web.row.id}/net0"
        before = plane.devices[way]
        await plane.device_del(way)
        assert ways.restarted is not None
        await ways.restarted(web.row.nics[0].mac)
        assert plane.devices[way] == before
        await daemon.supervisor.stop("web")
        await ways.restarted(web.row.nics[0].mac)
        assert plane.devices == {}

    stage.play(scene)
