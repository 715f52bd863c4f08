"""How machines end, on fakes whose processes are real."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.unit.daemon.machines import behaving, events_of, plane_of, process_of, spec

from nagaya.daemon import endings
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.supervised import DOWN, UP
from nagaya.models.machine import MachineState
from nagaya.testing import Stage


def test_a_stubborn_guest_is_killed_at_the_deadline(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.stubborn"))
        await daemon.supervisor.start("web")
        begun = time.monotonic()
        one = await daemon.supervisor.stop("web", 0.2)
        assert time.monotonic() - begun >= 0.2
        assert one.row.state is MachineState.STOPPED
        assert one.row.cause == "killed: it did not shut down within 0.2 s"

    stage.play(scene)


def test_a_killed_machine_is_stopped_and_stays_so_whatever_its_policy(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(restart="always"))
        await daemon.supervisor.start("web")
        await daemon.supervisor.kill("web")
        assert (one.row.state, one.row.cause, one.retry) == (MachineState.STOPPED, "", None)

    stage.play(scene)


def test_kill_overtakes_a_stop_that_waits(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.stubborn"))
        await daemon.supervisor.start("web")
        stopping = asyncio.create_task(daemon.supervisor.stop("web", 30))
        await daemon.supervisor.wait("web", frozenset({MachineState.STOPPING}), 60)
        await daemon.supervisor.kill("web")
        assert (await stopping).row.state is MachineState.STOPPED

    stage.play(scene)


def test_a_guest_that_powers_off_leaves_a_stopped_machine(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.end=0.05:0"))
        await daemon.supervisor.start("web")
        one = await daemon.supervisor.wait("web", DOWN, 60)
        assert (one.row.state, one.row.cause) == (MachineState.STOPPED, "")
        assert plane_of(daemon).devices == {}

    stage.play(scene)


def test_a_panic_leaves_a_failed_machine_with_its_cause(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.end=0.05:20"))
        await daemon.supervisor.start("web")
        one = await daemon.supervisor.wait("web", DOWN, 60)
        assert one.row.state is MachineState.FAILED
        assert one.row.cause == "the guest's kernel panicked: status 20"
        assert (await daemon.supervisor.stop("web")).row.state is MachineState.STOPPED

    stage.play(scene)


def test_a_guest_that_reboots_gets_a_new_process(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.end=0.2:10"))
        await daemon.supervisor.start("web")
        first = process_of(daemon, "web")
        one = daemon.supervisor.get("web")
        async with asyncio.timeout(60):
            while one.row.restarts == 0 or one.row.state not in UP:
                await one.changed.wait()
        assert process_of(daemon, "web") != first
        assert "ended: reboot" in await events_of(daemon, "web")
        await daemon.supervisor.kill("web")

    stage.play(scene)


def test_the_restart_policy_starts_a_failed_machine_again_and_waits_longer_each_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "BACKOFF_FIRST", 0.02)

    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.end=0.02:1", restart="on-failure"))
        one = await daemon.supervisor.start("web")
        async with asyncio.timeout(60):
            while one.row.restarts < 3:
                await one.changed.wait()
        planned = [
            entry.detail
            for entry in await daemon.supervisor.journal("web", 100)
            if entry.event == "restart planned"
        ]
        assert planned[:3] == ["in 0.02 s", "in 0.04 s", "in 0.08 s"]
        await daemon.supervisor.wait("web", frozenset({MachineState.FAILED}), 5)
        await daemon.supervisor.stop("web")
        await asyncio.sleep(0.4)
        assert one.row.state is MachineState.STOPPED

    stage.play(scene)


def test_policy_on_failure_lets_a_power_off_be(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.end=0.02:0", restart="on-failure"))
        one = await daemon.supervisor.start("web")
        await daemon.supervisor.wait("web", DOWN, 60)
        assert one.row.retry_at is None

    stage.play(scene)


def test_a_plane_that_dies_takes_its_machines_down_and_policy_brings_them_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "BACKOFF_FIRST", 0.02)

    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec())
        await daemon.supervisor.create(spec("db", restart="always"))
        for name in ("web", "db"):
            await daemon.supervisor.start(name)
        plane_of(daemon).lose_all()
        web = await daemon.supervisor.wait("web", DOWN, 60)
        assert web.row.cause == "the plane ended, and the machine's devices with it"
        db = daemon.supervisor.get("db")
        async with asyncio.timeout(60):
            while db.row.restarts == 0 or db.row.state not in UP:
                await db.changed.wait()

    stage.play(scene)
