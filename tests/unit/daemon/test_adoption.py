"""What a daemon finds when it starts."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from dataclasses import replace

import pytest

from nagaya.daemon.adoption import is_alive, start_time
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.parts import Parts
from nagaya.daemon.supervised import DOWN, UP
from nagaya.engines.engine import Engine, ProcessId
from nagaya.models.machine import MachineState
from nagaya.spec import MachineSpec
from nagaya.testing import FakePlane, Stage
from nagaya.testing.stores import fake_parts


def spec(name: str = "web", **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})


async def bring_up(daemon: Daemon) -> None:
    await daemon.supervisor.create(spec())
    await daemon.supervisor.start("web")


def edit(stage: Stage, statement: str) -> None:
    """Change what the next daemon will remember."""
    db = sqlite3.connect(stage.paths.database)
    db.execute(statement)
    db.commit()
    db.close()


def pid_of(daemon: Daemon) -> int:
    pid = daemon.supervisor.get("web").row.pid
    assert pid is not None
    return pid


def test_a_running_machine_is_adopted_and_can_be_commanded(stage: Stage) -> None:
    pids = []

    async def first(daemon: Daemon) -> None:
        await bring_up(daemon)
        pids.append(pid_of(daemon))

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("web")
        assert one.row.state == "running"
        assert pid_of(daemon) == pids[0]
        await daemon.supervisor.stop("web", 5)
        assert one.row.state == "stopped"

    stage.play(first)
    assert start_time(pids[0]) is not None
    stage.play(second)
    assert start_time(pids[0]) is None


def test_a_machine_stays_with_the_engine_that_started_it(stage: Stage) -> None:
    asked: list[str] = []

    async def second(daemon: Daemon) -> None:
        asked.clear()
        await daemon.supervisor.stop("web", 5)
        await daemon.supervisor.delete("web")

    def parts() -> Parts:
        usual = fake_parts(stage.paths)

        def select(spec: MachineSpec) -> Engine:
            asked.append(spec.engine)
            return usual.engine(spec)

        return replace(usual, engine=select)

    stage.play(bring_up, parts())
    assert set(asked) == {"auto", "uml"}, "auto before the start, then what it chose"
    stage.play(second, parts())
    assert set(asked) == {"uml"}, "whatever auto would choose now"


def test_the_end_of_an_adopted_machine_is_noticed(stage: Stage) -> None:
    async def second(daemon: Daemon) -> None:
        os.kill(pid_of(daemon), signal.SIGTERM)
        one = await daemon.supervisor.wait("web", DOWN, 5)
        assert one.row.state is MachineState.STOPPED

    stage.play(bring_up)
    stage.play(second)


def test_a_number_that_another_process_got_is_not_adopted(stage: Stage) -> None:
    async def second(daemon: Daemon) -> None:
        one = await daemon.supervisor.wait("web", DOWN, 5)
        assert one.row.state is MachineState.FAILED
        assert one.row.cause == "its process was killed from outside: no exit status"

    stage.play(bring_up)
    edit(stage, f"UPDATE machines SET pid = {os.getpid()}, start_time = 1")
    stage.play(second)
    assert start_time(os.getpid()) is not None


def test_a_process_is_alive_only_with_its_own_start_time() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert is_alive(ProcessId(os.getpid(), mine))
    assert not is_alive(ProcessId(os.getpid(), mine + 1))
    assert not is_alive(ProcessId(2**22 + 1, mine))


def test_a_machine_that_ended_meanwhile_is_told_with_its_reason(stage: Stage) -> None:
    pids = []

    async def first(daemon: Daemon) -> None:
        await bring_up(daemon)
        pids.append(pid_of(daemon))

    async def second(daemon: Daemon) -> None:
        one = await daemon.supervisor.wait("web", DOWN, 5)
        assert (one.row.state, one.row.cause) == (MachineState.STOPPED, "")
        plane = daemon.parts.plane
        assert isinstance(plane, FakePlane)
        assert plane.devices == {}

    stage.play(first)
    os.kill(pids[0], signal.SIGTERM)
    while start_time(pids[0]) is not None:
        time.sleep(0.01)
    stage.play(second)


def test_a_machine_paused_behind_our_back_is_seen_as_paused(stage: Stage) -> None:
    pids = []

    async def first(daemon: Daemon) -> None:
        await bring_up(daemon)
        pids.append(pid_of(daemon))

    async def second(daemon: Daemon) -> None:
        assert daemon.supervisor.get("web").row.state is MachineState.PAUSED
        await daemon.supervisor.resume("web")

    stage.play(first)
    os.kill(pids[0], signal.SIGSTOP)
    time.sleep(0.05)
    stage.play(second)


def test_after_a_reboot_of_the_host_machines_are_stopped_and_autostart_starts(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec())
        await daemon.supervisor.create(spec("db", autostart=True))
        for name in ("web", "db"):
            await daemon.supervisor.start(name)
            await daemon.supervisor.kill(name)

    async def second(daemon: Daemon) -> None:
        web = daemon.supervisor.get("web")
        assert (web.row.state, web.row.cause) == (MachineState.STOPPED, "the host restarted")
        assert (await daemon.supervisor.wait("db", UP, 5)).row.state is MachineState.RUNNING

    stage.play(first)
    edit(stage, "UPDATE machines SET state = 'running', pid = 4194305, start_time = 1")
    edit(stage, "UPDATE facts SET value = 'another boot' WHERE key = 'boot_id'")
    stage.play(second)


def test_devices_of_machines_that_do_not_run_are_removed(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await bring_up(daemon)
        pid = pid_of(daemon)
        os.kill(pid, signal.SIGKILL)

    async def second(daemon: Daemon) -> None:
        plane = daemon.parts.plane
        assert isinstance(plane, FakePlane)
        assert plane.devices == {}

    stage.play(first)
    edit(stage, "UPDATE machines SET state = 'stopped', pid = NULL")
    stage.play(second)


def test_a_machine_whose_devices_the_plane_lost_is_ended(stage: Stage) -> None:
    async def second(daemon: Daemon) -> None:
        one = await daemon.supervisor.wait("web", DOWN, 5)
        assert one.row.cause == "the plane ended, and the machine's devices with it"

    stage.play(bring_up)
    FakePlane(stage.paths).lose_all()
    stage.play(second)


def test_a_planned_restart_survives_the_daemon(stage: Stage) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec(boot={"cmdline": "fake.end=0.02:1"}, restart="on-failure"))
        one = await daemon.supervisor.start("web")
        async with asyncio.timeout(5):
            while one.row.retry_at is None:
                await one.changed.wait()

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("web")
        before = one.row.restarts
        async with asyncio.timeout(10):
            while one.row.restarts == before:
                await one.changed.wait()
        await daemon.supervisor.delete("web", force=True)

    stage.play(first)
    stage.play(second)


@pytest.mark.parametrize("attempts", [0, 2])
def test_a_start_that_daemons_die_over_is_given_up(stage: Stage, attempts: int) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec())

    async def second(daemon: Daemon) -> None:
        one = daemon.supervisor.get("web")
        assert one.row.state is (MachineState.RUNNING if attempts == 0 else MachineState.FAILED)
        if attempts:
            assert "3 daemons ended while they started it" in one.row.cause

    stage.play(first)
    edit(stage, f"UPDATE machines SET state = 'starting', attempts = {attempts}")
    stage.play(second)
