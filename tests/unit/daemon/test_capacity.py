"""Admission in the daemon, and the queue of those that wait for room; on fakes whose processes are real."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from nagaya.daemon import startqueue
from nagaya.daemon.daemon import Daemon
from nagaya.engines.engine import Machine, ProcessId
from nagaya.errors import ResourceError, SpecError, UsageError
from nagaya.models.host import StartWait
from nagaya.models.machine import MachineState
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.engine import FakeEngine

MIB = 2**20


@pytest.fixture(autouse=True)
def small_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host of 1 GiB, of which 256 MiB stay with it, and 1 CPU, of which 0.1 do."""
    monkeypatch.setattr("nagaya.resources.admission.host_memory", lambda: 1024 * MIB)
    monkeypatch.setattr("nagaya.resources.admission.host_cpus", lambda: 1)
    yield


def spec(name: str, memory: Any = "300MiB", **parts: Any) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": memory, **parts})


async def made(daemon: Daemon, *names: str, start: bool = True, **parts: Any) -> None:
    for name in names:
        await daemon.supervisor.create(spec(name, **parts))
        if start:
            await daemon.supervisor.start(name)


async def settled(daemon: Daemon, name: str) -> StartWait:
    """The end of a machine's waiting."""
    async with asyncio.timeout(60):
        while (place := await daemon.supervisor.queue.waiting(name, 5)).state == "waiting":
            pass
    return place


def test_the_policy_decides_what_fits_and_is_remembered(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await made(daemon, "a", "b")
        await made(daemon, "c", start=False)
        with pytest.raises(ResourceError, match="c needs 316 MiB"):
            await daemon.supervisor.start("c")
        answer = await daemon.supervisor.capacity.set([("memory.overcommit", "fair")])
        assert [(change.field, change.after) for change in answer.changes] == [("memory.overcommit", "fair")]
        await daemon.supervisor.start("c")
        await made(daemon, "d", memory={"size": "900MiB", "reservation": "730MiB"}, start=False)
        with pytest.raises(ResourceError, match="d reserves 746 MiB"):
            await daemon.supervisor.start("d")

    async def second(daemon: Daemon) -> None:
        assert daemon.supervisor.capacity.policy.memory.overcommit == "fair"

    stage.play(first)
    stage.play(second)


def test_a_wrong_policy_is_refused(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        capacity = daemon.supervisor.capacity
        with pytest.raises(UsageError, match=r"no field 'memory\.weight'"):
            await capacity.set([("memory.weight", 3)])
        for value in ("greedy", 0.5, True):
            with pytest.raises(SpecError, match="overcommit"):
                await capacity.set([("memory.overcommit", value)])
        before = capacity.policy
        answer = await capacity.set([("cpu.overcommit", "none"), ("memory.kept", "1GiB")], dry_run=True)
        assert len(answer.changes) == 2
        assert capacity.policy == before
        await capacity.set([("cpu.overcommit", "none"), ("memory.kept", "1GiB")])
        assert capacity.policy.memory.kept == 1024 * MIB
        await capacity.set([("cpu.overcommit", None), ("memory.kept", "none")])
        assert capacity.policy == before

    stage.play(scene)


def test_reservations_are_admitted_when_they_are_set_and_when_two_are_set_at_once(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", "b", memory="64MiB")
        shares = daemon.supervisor.shares
        both = (shares.set(name, [("cpu.reservation", 0.5)]) for name in ("a", "b"))
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(result) for result in results].count(ResourceError) == 1
        held = [daemon.supervisor.get(name).spec.cpu.reservation for name in ("a", "b")]
        assert sorted(held) == [0, 0.5]

    stage.play(scene)


def test_what_starts_with_the_host_must_fit_together(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", "b", start=False, autostart=True)
        with pytest.raises(
            ResourceError, match="autostart, of all machines that start with the host: c needs"
        ):
            await daemon.supervisor.create(spec("c", autostart=True))
        await daemon.supervisor.create(spec("c"))
        with pytest.raises(ResourceError, match="autostart"):
            await daemon.supervisor.shares.set("c", [("autostart", True)])
        await daemon.supervisor.shares.set("a", [("autostart", False)])
        await daemon.supervisor.shares.set("c", [("autostart", True)])

    stage.play(scene)


def test_who_waits_is_started_in_turn_and_nobody_passes(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        queue = daemon.supervisor.queue
        await made(daemon, "a", "b")
        await made(daemon, "big", memory="500MiB", start=False)
        await made(daemon, "small", memory="100MiB", start=False)
        with daemon.events.subscribe() as news:
            place = await queue.start("big", None)
            assert (place.state, place.position) == ("waiting", 1)
            assert "big needs 516 MiB" in place.reason
            assert (await anext(event async for event in news if event["event"] == "queue"))["name"] == "big"
        with pytest.raises(ResourceError, match="big 516 MiB, which waits"):
            await daemon.supervisor.start("small")
        assert (await queue.start("small", None)).position == 2
        assert (await queue.start("big", None)).position == 1
        assert daemon.supervisor.get("small").cause.startswith("small needs 116 MiB")
        await daemon.supervisor.kill("a")
        assert daemon.supervisor.get("big").row.state is MachineState.STOPPED
        await daemon.supervisor.kill("b")
        assert (await settled(daemon, "big")).state == "started"
        assert (await settled(daemon, "small")).state == "started"
        assert queue.all() == []

    stage.play(scene)


def test_waiting_ends_at_its_deadline_by_a_stop_and_by_a_delete(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        queue = daemon.supervisor.queue
        await made(daemon, "a", "b")
        await made(daemon, "late", "left", "gone", start=False)
        await queue.start("late", 0.05)
        place = await settled(daemon, "late")
        assert (place.state, place.reason.split(":")[0]) == ("ended", "it has waited long enough")
        await queue.start("left", None)
        await daemon.supervisor.stop("left")
        assert (await settled(daemon, "left")).reason == "it was stopped"
        await queue.start("gone", None)
        await daemon.supervisor.delete("gone")
        assert queue.all() == []
        assert (await daemon.supervisor.capacity.report()).waiting == []
        events = [entry.event for entry in await daemon.supervisor.journal("late", 10)]
        assert events == ["created", "waits for room", "waits no more"]

    stage.play(scene)


def test_the_next_daemon_goes_on_with_the_queue(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await made(daemon, "a", "b")
        await made(daemon, "c", "d", start=False)
        for name in ("c", "d"):
            await daemon.supervisor.queue.start(name, None)

    async def second(daemon: Daemon) -> None:
        assert [place.machine for place in daemon.supervisor.queue.all()] == ["c", "d"]
        await daemon.supervisor.kill("a")
        assert (await settled(daemon, "c")).state == "started"
        assert [place.machine for place in daemon.supervisor.queue.all()] == ["d"]

    stage.play(first)
    stage.play(second)


def test_a_machine_that_restarts_keeps_its_place_on_the_host(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", "b")
        await made(daemon, "c", start=False)
        await daemon.supervisor.queue.start("c", None)
        await daemon.supervisor.restart("a", 5)
        assert daemon.supervisor.get("a").row.state is MachineState.RUNNING
        assert daemon.supervisor.queue.place(daemon.supervisor.get("c")).state == "waiting"

    stage.play(scene)


def test_what_this_host_never_has_is_refused_at_once(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", memory="1GiB", start=False)
        with pytest.raises(ResourceError, match="a needs"):
            await daemon.supervisor.queue.start("a", None)
        assert daemon.supervisor.queue.all() == []

    stage.play(scene)


def test_a_disk_that_has_too_much_promised_is_waited_for_too(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        disks = [{"size": "1MiB"}]
        await made(daemon, "a", memory="64MiB", disks=disks, disk={"reservation": "6000iops"})
        await made(daemon, "b", memory="64MiB", disks=disks, disk={"reservation": "6000iops"}, start=False)
        place = await daemon.supervisor.queue.start("b", None)
        assert "6000iops are promised" in place.reason
        assert daemon.supervisor.get("b").row.state is MachineState.STOPPED
        await daemon.supervisor.shares.set("a", [("disk.reservation", "1000iops")])
        assert (await settled(daemon, "b")).state == "started"

    stage.play(scene)


def test_a_start_that_fails_for_want_of_room_is_tried_again_but_not_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startqueue, "RECHECK", 0.2)
    attempts = 0

    async def start(_engine: FakeEngine, machine: Machine) -> ProcessId:
        nonlocal attempts
        attempts += 1
        raise ResourceError(f"{machine.spec.name} cannot have one CPU", room="cpu", need=0.6, most=0.95)

    real = FakeEngine.start
    monkeypatch.setattr(FakeEngine, "start", start)

    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", start=False)
        assert (await daemon.supervisor.queue.start("a", None)).reason == "a cannot have one CPU"
        async with asyncio.timeout(10):
            while attempts < 3:
                daemon.supervisor.queue.kick()
                await asyncio.sleep(0.01)
        assert daemon.supervisor.get("a").row.state is not MachineState.FAILED
        monkeypatch.setattr(FakeEngine, "start", real)
        assert (await settled(daemon, "a")).state == "started"
        tried = [one for one in await daemon.supervisor.journal("a", 100) if one.event == "starting"]
        assert len(tried) <= 5

    stage.play(scene)


def test_the_report_has_what_is_promised_and_left(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await made(daemon, "a", disks=[{"size": "1MiB"}], disk={"reservation": "4000iops"})
        await made(daemon, "b", cpu={"reservation": 0.5})
        report = await daemon.supervisor.capacity.report()
        cpu, memory, *disks = report.resources
        assert (cpu.total, cpu.kept, cpu.promised, cpu.visible) == (1, 0.1, 0.5, 2)
        assert cpu.left == pytest.approx(0.4)
        assert (memory.promised, memory.left) == (632 * MIB, 136 * MIB)
        assert (disks[0].unit, disks[0].promised, disks[0].left) == ("iops", 4000, 6000)
        assert report.machines_running == 2

    stage.play(scene)
