"""Networks and the addresses of machines, on fakes."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.daemon import apply
from nagaya.daemon.apply import Request
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.networks import Networks
from nagaya.errors import ConflictError, NotFoundError, ResourceError, SpecError, UnsupportedError, UsageError
from nagaya.progress import silent
from nagaya.spec import MachineSpec, NetworkSpec, SecurityGroup
from nagaya.testing import FakeNetworks, Stage


def spec(name: str = "web", **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


def network(name: str = "back", **parts: object) -> NetworkSpec:
    return NetworkSpec.model_validate({"name": name, **parts})


def host_of(daemon: Daemon) -> FakeNetworks:
    host = daemon.parts.networks
    assert isinstance(host, FakeNetworks)
    return host


def networks_of(daemon: Daemon) -> Networks:
    return daemon.supervisor.networks


def test_a_machine_that_names_no_network_is_on_the_default_one(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        assert networks_of(daemon).all() == []
        one = await daemon.supervisor.create(spec())
        [default] = networks_of(daemon).all()
        assert (default.name, default.spec.mode, default.spec.ipv4) == ("default", "nat", "10.77.0.0/24")
        info = daemon.machine(one)
        assert info.address.startswith("10.77.0.")
        assert info.nics[0]["mac"].startswith("52:54:00:")
        assert info.nics[0]["ipv6"].startswith("fd")
        [address] = networks_of(daemon).info(default).addresses
        assert (address.machine, address.nic, address.ipv4) == ("web", "net0", info.address)

    stage.play(scene)


def test_a_machine_may_have_no_nic(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(nics=[]))
        assert (one.row.nics, daemon.machine(one).address, networks_of(daemon).all()) == ((), "", [])

    stage.play(scene)


def test_addresses_stay_over_daemons_and_go_with_the_machine(stage: Stage) -> None:
    found = []

    async def first(daemon: Daemon) -> None:
        for name in ("web", "db"):
            found.append((await daemon.supervisor.create(spec(name))).row.nics)

    async def second(daemon: Daemon) -> None:
        assert [daemon.supervisor.get(name).row.nics for name in ("web", "db")] == found
        assert found[0] != found[1]
        await daemon.supervisor.delete("web")
        assert [
            one.machine for one in networks_of(daemon).info(networks_of(daemon).get("default")).addresses
        ] == ["db"]
        again = await daemon.supervisor.create(spec())
        assert again.row.nics[0].ipv4 == found[0][0].ipv4, "the same name has the same address"
        assert again.row.nics[0].mac != found[0][0].mac, "but it is another machine"

    stage.play(first)
    stage.play(second)


def test_many_creations_at_once_give_no_address_twice(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await asyncio.gather(*(daemon.supervisor.create(spec(f"m{number}")) for number in range(20)))
        rows = [one.row.nics[0] for one in daemon.supervisor.all()]
        for field in ("mac", "ipv4", "ipv6"):
            assert len({getattr(row, field) for row in rows}) == 20
        assert len(networks_of(daemon).all()) == 1

    stage.play(scene)


def test_an_exhausted_network_leaves_no_half_machine(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await networks_of(daemon).create(network(ipv4="10.9.0.0/29", ipv6=None))
        nics = [{"network": "back"}]
        for number in range(5):
            await daemon.supervisor.create(spec(f"m{number}", nics=nics))
        with pytest.raises(ResourceError, match=r"all 5 of 10.9.0.0/29 are taken, by m0, m1, m2, m3, m4"):
            await daemon.supervisor.create(spec("late", nics=nics))
        assert len(daemon.supervisor.all()) == 5

    stage.play(scene)


def test_wishes_are_granted_or_refused(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await networks_of(daemon).create(network(ipv4="10.9.0.0/24"))
        wish = {"network": "back", "ipv4": "10.9.0.7", "mac": "52:54:00:00:00:07"}
        one = await daemon.supervisor.create(spec(nics=[wish]))
        assert (one.row.nics[0].ipv4, one.row.nics[0].mac) == ("10.9.0.7", "52:54:00:00:00:07")
        with pytest.raises(ConflictError, match=r"10.9.0.7 is the address of web"):
            await daemon.supervisor.create(spec("db", nics=[{"network": "back", "ipv4": "10.9.0.7"}]))
        with pytest.raises(ConflictError, match=r"52:54:00:00:00:07 is the MAC address of web"):
            await daemon.supervisor.create(spec("db", nics=[{"network": "back", "mac": wish["mac"]}]))
        with pytest.raises(SpecError, match="not an address for a machine of network back"):
            await daemon.supervisor.create(spec("db", nics=[{"network": "back", "ipv4": "10.8.0.7"}]))
        with pytest.raises(NotFoundError, match="there is no network 'bakc'"):
            await daemon.supervisor.create(spec("db", nics=[{"network": "bakc"}]))

    stage.play(scene)


def test_a_changed_machine_keeps_the_addresses_of_nics_that_are_the_same(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await networks_of(daemon).create(network())
        one = await daemon.supervisor.create(spec(nics=[{"network": "back"}, {}]))
        before = one.row.nics
        await daemon.supervisor.change(
            one, spec(memory="65MiB", nics=[{"network": "back"}, {"network": "back"}]), ""
        )
        assert one.row.nics[0] == before[0]
        assert one.row.nics[1].network == "back"
        assert len({row.ipv4 for row in one.row.nics}) == 2
        await daemon.supervisor.change(one, spec(nics=[{"network": "back", "ipv4": before[0].ipv4}]), "")
        assert one.row.nics == before[:1]

    stage.play(scene)


def test_ranges_are_chosen_beside_those_in_use(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        host_of(daemon).used = ["10.77.0.0/23", "fd00::/8"]
        networks = networks_of(daemon)
        assert (await networks.create(network("a", ipv6=None))).spec.ipv4 == "10.77.2.0/24"
        assert (await networks.create(network("b", ipv6=None))).spec.ipv4 == "10.77.3.0/24"
        with pytest.raises(ConflictError, match=r"cannot have 10.77.2.128/25: network a has 10.77.2.0/24"):
            await networks.create(network("c", ipv4="10.77.2.128/25", ipv6=None))
        with pytest.raises(ConflictError, match=r"the host has a route to 10.77.0.0/23"):
            await networks.create(network("c", ipv4="10.77.1.0/24", ipv6=None))
        with pytest.raises(UnsupportedError, match="network c: this host has no macvtap"):
            await networks.create(network("c", mode="macvtap", uplink="eth0"))
        bridged = await networks.create(network("c", mode="bridge", uplink="br0"))
        assert (bridged.spec.ipv4, bridged.spec.ipv6) == (None, None)
        [row] = (await daemon.supervisor.create(spec(nics=[{"network": "c"}]))).row.nics
        assert (row.ipv4, row.ipv6) == ("", "")

    stage.play(scene)


def test_a_network_in_use_cannot_be_deleted_nor_moved(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        networks = networks_of(daemon)
        await networks.create(network())
        with pytest.raises(ConflictError, match="there is a network 'back' already"):
            await networks.create(network())
        await daemon.supervisor.create(spec(nics=[{"network": "back"}]))
        with pytest.raises(ConflictError, match="network back is used by web"):
            await networks.delete("back")
        with pytest.raises(ConflictError, match="web have addresses of network back"):
            await networks.set("back", [("ipv4", "10.9.0.0/24")], dry_run=False)
        answer = await networks.set("back", [("dns", False)], dry_run=True)
        assert [(one.field, one.before, one.after) for one in answer.changes] == [("dns", True, False)]
        assert networks.get("back").spec.dns
        await daemon.supervisor.delete("web")
        await networks.set("back", [("ipv4", "10.9.0.0/24"), ("ipv6", "none")], dry_run=False)
        assert (networks.get("back").spec.ipv4, networks.get("back").spec.ipv6) == ("10.9.0.0/24", None)
        with pytest.raises(UsageError, match="did you mean 'mtu'"):
            await networks.set("back", [("mut", 9000)], dry_run=False)
        with pytest.raises(SpecError, match="mtu"):
            await networks.set("back", [("mtu", 90)], dry_run=False)
        await networks.delete("back")
        with pytest.raises(NotFoundError, match="there is no network 'back'"):
            networks.get("back")

    stage.play(scene)


def test_ports_need_a_nic(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        host_of(daemon).default = ""
        with pytest.raises(UnsupportedError, match="no NIC that they could lead to"):
            await daemon.supervisor.create(spec(ports=["8080:80"]))
        assert (await daemon.supervisor.create(spec())).row.nics == ()

    stage.play(scene)


def test_groups_are_made_changed_and_kept_while_they_are_used(stage: Stage) -> None:
    group = SecurityGroup.model_validate({"name": "web", "in": ["tcp:80"]})

    async def first(daemon: Daemon) -> None:
        groups = daemon.supervisor.groups
        with pytest.raises(NotFoundError, match="there is no security group 'web'"):
            await daemon.supervisor.create(spec(nics=[{"groups": ["web"]}]))
        await groups.create(group)
        with pytest.raises(ConflictError, match="there is a security group 'web' already"):
            await groups.create(group)
        assert not await groups.put(group)
        await daemon.supervisor.create(spec(nics=[{"groups": ["web"]}]))

    async def second(daemon: Daemon) -> None:
        groups = daemon.supervisor.groups
        assert groups.info(groups.get("web")).machines == ["web"]
        with pytest.raises(ConflictError, match="security group web is that of web"):
            await groups.delete("web")
        await daemon.supervisor.delete("web")
        await groups.delete("web")
        assert groups.all() == []

    stage.play(first)
    stage.play(second)


def test_up_makes_networks_and_groups_and_twice_changes_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        wanted = Request(
            [spec(nics=[{"network": "back", "groups": ["web"]}])],
            {},
            networks=[network(mode="isolated")],
            groups=[SecurityGroup.model_validate({"name": "web", "in": ["tcp:80"]})],
        )
        first = await apply.up(daemon, wanted, silent)
        assert first["networks"] == [{"name": "back", "action": "create"}]
        assert first["groups"] == [{"name": "web", "action": "set"}]
        second = await apply.up(daemon, wanted, silent)
        assert [one["action"] for section in second.values() for one in section] == ["unchanged"] * 3, second
        with pytest.raises(NotFoundError, match="there is no network 'bakc'"):
            apply.plan(daemon, Request([spec("db", nics=[{"network": "bakc"}])], {}))
        with pytest.raises(NotFoundError, match="no security group 'wbe'"):
            apply.plan(daemon, Request([spec("db", nics=[{"groups": ["wbe"]}])], {}))

    stage.play(scene)
