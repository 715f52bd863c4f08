"""How machines start, on fakes whose processes are real."""

from __future__ import annotations

import asyncio

import pytest
from tests.unit.daemon.machines import behaving, plane_of, spec

from nagaya.daemon.daemon import Daemon
from nagaya.errors import (
    ResourceError,
    UnavailableError,
)
from nagaya.models.machine import MachineState
from nagaya.testing import FakePlane, Stage, fake_parts


def test_a_failed_start_leaves_nothing(stage: Stage) -> None:
    parts = fake_parts(stage.paths)
    plane = parts.plane
    assert isinstance(plane, FakePlane)
    plane.refuse.add("console")

    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(disks=[{"size": "1MiB"}]))
        with pytest.raises(UnavailableError, match="told to refuse"):
            await daemon.supervisor.start("web")
        assert one.row.state is MachineState.FAILED
        assert "told to refuse" in one.row.cause
        assert plane.devices == {}
        plane.refuse.clear()
        assert (await daemon.supervisor.start("web")).row.state is MachineState.RUNNING

    stage.play(scene, parts)


def test_an_engine_that_refuses_leaves_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.refuse"))
        with pytest.raises(UnavailableError):
            await daemon.supervisor.start("web")
        assert plane_of(daemon).devices == {}

    stage.play(scene)


def test_memory_beyond_the_host_is_refused_with_the_arithmetic(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec(memory="1TiB"))
        with pytest.raises(ResourceError, match=r"web needs .* are left: the host has"):
            await daemon.supervisor.start("web")
        assert daemon.supervisor.get("web").row.state is MachineState.STOPPED

    stage.play(scene)


def test_starts_at_the_same_time_cannot_overdraw_the_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nagaya.resources.admission.host_memory", lambda: 512 * 2**20)

    async def scene(daemon: Daemon) -> None:
        for number in range(4):
            await daemon.supervisor.create(spec(f"m{number}", memory="100MiB"))
        starts = (daemon.supervisor.start(f"m{number}") for number in range(4))
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(result, ResourceError) for result in results) == 2

    stage.play(scene)
