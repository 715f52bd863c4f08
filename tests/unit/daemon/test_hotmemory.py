"""Memory of machines that run, on fakes: what the plane and the control group are told, and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nagaya.daemon import hotmemory
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.shares import only_knobs_differ
from nagaya.errors import ConflictError
from nagaya.resources import broker
from nagaya.spec import MIB, MachineSpec
from nagaya.testing import FakeEngine, FakePlane, Stage, fake_parts


def spec(size: int = 64, most: int | None = 256) -> MachineSpec:
    memory = {"size": f"{size}MiB"} | ({} if most is None else {"max": f"{most}MiB"})
    return MachineSpec.model_validate({"name": "db", "memory": memory, "nics": []})


async def running(daemon: Daemon, made: MachineSpec) -> Any:
    await daemon.supervisor.create(made)
    return await daemon.supervisor.start("db")


async def resize(daemon: Daemon, mib: int) -> None:
    await daemon.supervisor.shares.set("db", [("memory.size", f"{mib}MiB")])


def told(daemon: Daemon) -> tuple[int, int]:
    """MiB that the guest is asked to have plugged, and that its control group lets it have."""
    one = daemon.supervisor.get("db")
    engine, plane = daemon.supervisor.engine_of(one), daemon.parts.plane
    assert isinstance(engine, FakeEngine) and isinstance(plane, FakePlane)
    return plane.devices[f"{one.row.id}/mem0"]["requested"] // MIB, engine.held[one.row.id] // MIB


def test_memory_grows_and_shrinks_between_what_it_began_with_and_the_maximum(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await running(daemon, spec())
        await resize(daemon, 128)
        assert told(daemon) == (64, 128)
        await resize(daemon, 256)
        assert told(daemon) == (192, 256)
        await resize(daemon, 64)
        assert told(daemon)[0] == 0
        assert one.spec.memory.size == 64 * MIB
        for wrong, words in ((32, "started with 64 MiB"), (97, r"whole blocks of 2\.0 MiB")):
            with pytest.raises(ConflictError, match=words):
                await resize(daemon, wrong)
        with pytest.raises(ConflictError, match="takes that only when it starts"):
            await daemon.supervisor.shares.set("db", [("memory.max", "1GiB")])

    stage.play(scene)


def test_a_machine_without_a_maximum_is_told_what_would_help(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await running(daemon, spec(most=None))
        with pytest.raises(ConflictError, match=r"without memory\.max: nothing can be plugged"):
            await resize(daemon, 128)

    stage.play(scene)


def test_without_a_maximum_the_balloon_does_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "REST_S", 0.0)

    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.memory.set([("broker", False)])
        one = await running(daemon, spec(128, most=None))
        with pytest.raises(ConflictError, match="the broker is off"):
            await resize(daemon, 96)
        await daemon.supervisor.memory.set([("broker", True)])
        await resize(daemon, 96)
        await until(daemon, one, 96)
        assert only_knobs_differ(one.spec, spec(64, most=None))

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("db")
        answer = await daemon.supervisor.memory.show()
        assert (answer.machines[0].size, answer.machines[0].limit) == (128 * MIB, 96 * MIB)
        with pytest.raises(ConflictError, match="started with 128 MiB"):
            await resize(daemon, 160)
        await resize(daemon, 128)
        await until(daemon, one, 128)
        await resize(daemon, 64)
        await daemon.supervisor.restart("db")
        assert (one.booted, one.row.booted) == (64 * MIB, 64 * MIB)

    stage.play(first)
    stage.play(second)
    stage.clear()


async def until(daemon: Daemon, one: Any, mib: int) -> None:
    """Until its guest has so much and no more."""
    async with asyncio.timeout(60):
        while True:
            await daemon.supervisor.memory.round()
            rows = await daemon.parts.plane.balloons()
            if any(row.id.startswith(one.row.id) and one.booted - row.size == mib * MIB for row in rows):
                return
            await asyncio.sleep(0.01)


def test_a_guest_that_keeps_memory_keeps_its_limit_until_it_gives(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hotmemory, "PAUSE_S", 0.01)
    plane = FakePlane(stage.paths)

    async def scene(daemon: Daemon) -> None:
        one = await running(daemon, spec())
        await resize(daemon, 256)
        plane.slow.add(f"{one.row.id}/mem0")
        await resize(daemon, 128)
        assert told(daemon) == (64, 256)
        plane.slow.clear()
        await plane.set_memory(f"{one.row.id}/mem0", 64 * MIB)
        for _ in range(1000):
            if told(daemon) == (64, 128):
                break
            await asyncio.sleep(0.01)
        assert told(daemon) == (64, 128)

    stage.play(scene, replace(fake_parts(stage.paths), plane=plane))


def test_the_next_daemon_tells_again_what_is_recorded(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        one = await running(daemon, spec())
        await resize(daemon, 128)
        await daemon.parts.plane.set_memory(f"{one.row.id}/mem0", 0)  # as if it had died before

    async def second(daemon: Daemon) -> None:
        assert told(daemon) == (64, 128)

    stage.play(first)
    stage.play(second)


def test_the_next_daemon_sets_the_limit_of_what_plugs_nothing_too(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await running(daemon, spec(64, most=None))

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("db")
        engine = daemon.supervisor.engine_of(one)
        assert isinstance(engine, FakeEngine)
        assert engine.held[one.row.id] == 64 * MIB

    stage.play(first)
    stage.play(second)


def test_files_that_differ_in_memory_size_need_no_new_machine_if_there_is_a_maximum() -> None:
    assert only_knobs_differ(spec(64), spec(128))
    assert not only_knobs_differ(spec(64), spec(128, most=512))
    assert not only_knobs_differ(spec(64, most=None), spec(128, most=None))
