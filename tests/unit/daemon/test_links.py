"""Faults of links and connections, on fakes: names become ports of the plane, and names again."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.links import flows, list_faults, set_faults
from nagaya.errors import ConflictError, NotFoundError, UsageError
from nagaya.models.fault import NicFaults
from nagaya.models.machine import MachineState
from nagaya.spec import MachineSpec, NetworkSpec
from nagaya.testing import Stage


def spec(name: str, **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


def test_faults_are_the_running_machines_and_end_with_its_run(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        one = await supervisor.create(spec("web"))
        with pytest.raises(ConflictError, match="web is stopped, it cannot be given faults"):
            await set_faults(supervisor, "web", "net0", {"loss": 0.5})
        await supervisor.start("web")
        with pytest.raises(NotFoundError, match="web has no NIC 'net1'"):
            await set_faults(supervisor, "web", "net1", {"loss": 0.5})
        with pytest.raises(UsageError, match="no effect"):
            await set_faults(supervisor, "web", "net0", {"seed": 3, "loss": 0.0})
        await set_faults(supervisor, "web", "default", {"loss": 0.5, "partition": True})
        told = NicFaults(nic="net0", loss=0.5, partition=True, dropped=3)
        assert await list_faults(supervisor, "web") == [told]
        assert (one.cause, one.state) == ("faults on purpose on net0", MachineState.RUNNING)
        assert daemon.machine(one).faults == [{"nic": "net0", "loss": 0.5, "partition": True}]
        await set_faults(supervisor, "web", "net0", None)
        assert (await list_faults(supervisor, "web"), one.cause) == ([], "")
        await set_faults(supervisor, "web", "net0", {"delay_us": 5})
        await supervisor.kill("web")
        async with asyncio.timeout(5):
            while one.nic_faults:
                await one.changed.wait()
        events = [entry.event for entry in await supervisor.journal("web", 20)]
        assert events.count("faults") == 2 and events.count("faults over") == 1

    stage.play(scene)


def test_a_partition_is_from_those_on_the_same_network(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        await supervisor.networks.create(NetworkSpec(name="back", mode="isolated"))
        web = await supervisor.create(spec("web"))
        db = await supervisor.create(spec("db", nics=[{"network": "back"}, {}, {}]))
        await supervisor.create(spec("far", nics=[{"network": "back"}]))
        await supervisor.start("web")
        await set_faults(supervisor, "web", "net0", {"partition": ["db", "uplink"]})
        ids = ["%default/uplink", f"{db.row.id}/net1", f"{db.row.id}/net2"]
        assert web.nic_faults["net0"]["partition"] == ids
        [told] = await list_faults(supervisor, "web")
        assert told.partition == ["db/net1", "db/net2", "uplink"]
        await set_faults(supervisor, "web", "net0", {"partition": ["db/net1"]})
        assert web.nic_faults["net0"]["partition"] == ids[1:2]
        for other in ("far", "db/net0"):
            with pytest.raises(NotFoundError, match=f"{other} is not on network default"):
                await set_faults(supervisor, "web", "net0", {"partition": [other]})
        with pytest.raises(NotFoundError, match="no machine 'nobody'"):
            await set_faults(supervisor, "web", "net0", {"partition": ["nobody"]})

    stage.play(scene)


def test_connections_say_whose_address_the_other_end_is(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        await supervisor.networks.create(NetworkSpec(name="back", mode="isolated", ipv4="10.9.0.0/24"))
        nic = {"network": "back"}
        await supervisor.create(spec("web", nics=[{**nic, "ipv4": "10.9.0.7"}]))
        with pytest.raises(ConflictError, match="web is stopped, it cannot be asked"):
            await flows(supervisor, "web", "net0", 5)
        await supervisor.start("web")
        [flow] = await flows(supervisor, "web", "net0", 5)
        assert (flow.protocol, flow.remote, flow.remote_port, flow.machine) == ("tcp", "10.9.0.2", 443, "")
        await supervisor.create(spec("db", nics=[{**nic, "ipv4": "10.9.0.2"}]))
        [flow] = await flows(supervisor, "web", "net0", 5)
        assert flow.machine == "db"

    stage.play(scene)
