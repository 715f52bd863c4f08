"""The life of machines, on fakes whose processes are real."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest
from tests.unit.daemon.machines import behaving, events_of, plane_of, process_of, spec

from nagaya.daemon.adoption import is_alive
from nagaya.daemon.conditions import list_faults, set_faults
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.supervised import UP
from nagaya.errors import (
    ConflictError,
    NotFoundError,
    ResourceError,
    SpecError,
    TimeoutExpiredError,
    UnsupportedError,
    UsageError,
)
from nagaya.models.fault import DiskFaults
from nagaya.models.machine import MachineState
from nagaya.testing import Stage, fake_parts


def test_a_machine_starts_and_stops_and_every_transition_is_journalled(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec())
        await daemon.supervisor.start("web")
        assert one.row.state == "running"
        process = process_of(daemon, "web")
        assert is_alive(process)
        own = {f"{one.row.id}/{device}" for device in ("net0", "console", "rng", "balloon0")}
        assert plane_of(daemon).devices.keys() == {"%default/uplink", *own}
        await daemon.supervisor.stop("web")
        assert one.row.state == "stopped"
        assert (one.row.cause, one.row.pid) == ("", None)
        assert not is_alive(process)
        assert plane_of(daemon).devices == {}
        assert await events_of(daemon, "web") == ["created", "starting", "running", "stopping", "stopped"]

    stage.play(scene)


def test_pause_and_resume_are_idempotent(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec())
        await daemon.supervisor.start("web")
        for _ in range(2):
            assert (await daemon.supervisor.pause("web")).row.state is MachineState.PAUSED
        for _ in range(2):
            assert (await daemon.supervisor.resume("web")).row.state is MachineState.RUNNING
        await daemon.supervisor.pause("web")
        assert (await daemon.supervisor.stop("web", 60)).row.state is MachineState.STOPPED

    stage.play(scene)


def test_commands_that_the_state_does_not_allow_are_refused(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        await supervisor.create(spec())
        for command in (supervisor.stop, supervisor.kill, supervisor.pause, supervisor.resume):
            with pytest.raises(ConflictError, match="web is stopped, it cannot be"):
                await command("web")
        await supervisor.start("web")
        with pytest.raises(ConflictError, match="web is running, it cannot be started"):
            await supervisor.start("web")
        with pytest.raises(ConflictError, match="web is running, it cannot be deleted"):
            await supervisor.delete("web")

    stage.play(scene)


def test_restart_gives_a_new_process_and_starts_a_machine_that_is_down(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(behaving("fake.stubborn"))
        await daemon.supervisor.restart("web")
        first = process_of(daemon, "web")
        await daemon.supervisor.restart("web", hard=True)
        assert process_of(daemon, "web") != first
        assert not is_alive(first)

    stage.play(scene)


def test_delete_removes_all_files(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(disks=[{"size": "1MiB"}]))
        await daemon.supervisor.start("web")
        own = daemon.paths.machine(one.row.id)
        assert own.disk(0).exists()
        await daemon.supervisor.delete("web", force=True)
        assert not own.run.exists()
        assert not own.state.exists()
        with pytest.raises(NotFoundError):
            daemon.supervisor.get("web")

    stage.play(scene)


def test_what_cannot_be_created_is_refused_and_leaves_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        supervisor = daemon.supervisor
        await supervisor.create(spec())
        with pytest.raises(ConflictError, match="'web' is taken"):
            await supervisor.create(spec())
        with pytest.raises(NotFoundError, match="no image 'nothing'"):
            await supervisor.create(spec("a", disks=[{"image": "nothing"}]))
        with pytest.raises(
            NotFoundError, match=r"disks\[0\].path: there is no file or block device /nonexistent"
        ):
            await supervisor.create(spec("a", disks=[{"path": "/nonexistent"}]))
        with pytest.raises(UnsupportedError, match="cpus"):
            await supervisor.create(spec("a", cpus=2))
        await daemon.parts.images.build("small", {"kind": "fake"}, lambda _step, _fraction: None)
        await supervisor.create(spec("b", disks=[{"image": "small"}]))
        assert [one.name for one in supervisor.all()] == ["b", "web"]
        assert len(list((daemon.paths.state / "machines").iterdir())) == 2

    stage.play(scene)


def test_a_disk_smaller_than_its_image_is_refused(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        image = await daemon.parts.images.build("img", {"kind": "fake"}, lambda _step, _fraction: None)
        with image.path.open("r+b") as file:
            file.truncate(2**21)
        with contextlib.suppress(SpecError):
            await daemon.supervisor.create(spec(disks=[{"image": "img", "size": "1MiB"}]))

    stage.play(scene)


def test_a_full_disk_at_create_leaves_nothing(stage: Stage) -> None:
    def full(path: str, *_rest: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    from dataclasses import replace

    parts = replace(fake_parts(stage.paths), create_overlay=full)

    async def scene(daemon: Daemon) -> None:
        with pytest.raises(ResourceError, match=r"disk0\.qcow2 cannot be made: No space left on device"):
            await daemon.supervisor.create(spec(disks=[{"size": "1MiB"}]))
        assert daemon.supervisor.all() == []
        assert list((daemon.paths.state / "machines").iterdir()) == []

    stage.play(scene, parts)


def test_waiting_for_what_does_not_come_times_out(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec())
        with pytest.raises(TimeoutExpiredError, match=r"web is still stopped after 0\.05 s"):
            await daemon.supervisor.wait("web", UP, 0.05)

    stage.play(scene)


def test_every_machine_has_a_uid_of_its_own_outside_all_other_ranges(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        uids = {(await daemon.supervisor.create(spec(f"m{number}"))).row.uid for number in range(3)}
        if os.geteuid() == 0:
            assert len(uids) == 3
            assert min(uids) >= 0x70000000
            assert max(uids) < 0x7FFE0000

    stage.play(scene)


def test_a_changed_spec_keeps_the_disks_that_are_the_same(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.parts.images.build("img", {"kind": "fake"}, lambda _step, _fraction: None)
        before = spec(disks=[{"size": "1MiB"}, {"size": "2MiB"}])
        one = await daemon.supervisor.create(before)
        own = daemon.paths.machine(one.row.id)
        own.disk(0).write_bytes(b"precious")
        own.disk(1).write_bytes(b"doomed")
        after = spec(memory="128MiB", disks=[{"size": "1MiB", "direct": False}, {"image": "img"}])
        await daemon.supervisor.change(one, after, "")
        assert own.disk(0).read_bytes() == b"precious"
        assert own.disk(1).read_bytes() != b"doomed"
        assert one.spec == after

    stage.play(scene)


def test_a_machine_whose_disk_waits_for_space_says_so_as_long_as_it_does(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec())
        await daemon.supervisor.start("web")
        other = await daemon.supervisor.create(spec("other"))
        disk = f"{one.row.id}/disk0"
        plane_of(daemon).happen("DEVICE_NO_SPACE", disk)
        async with asyncio.timeout(60):
            while not one.cause:
                await one.changed.wait()
        assert one.info(daemon.paths).cause == "no space left on the host: disk0 waits for some"
        assert (one.row.state, other.cause) == (MachineState.RUNNING, "")
        assert (one.state, other.state) == (MachineState.IO_ERROR, MachineState.STOPPED)
        plane_of(daemon).happen("DEVICE_SPACE", disk)
        async with asyncio.timeout(60):
            while one.cause:
                await one.changed.wait()
        assert one.state is MachineState.RUNNING
        assert (await events_of(daemon, "web"))[-2:] == ["io-error", "io-error over"]


def test_a_disk_that_lost_writes_says_so_until_the_machine_starts_anew(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(disks=[{"size": "1MiB"}]))
        await daemon.supervisor.start("web")
        plane_of(daemon).happen("DEVICE_FLUSH_FAILED", f"{one.row.id}/disk0", errno=5)
        async with asyncio.timeout(60):
            while one.state is not MachineState.IO_ERROR:
                await one.changed.wait()
        assert one.cause.startswith("the host failed to write to disk0, something may be lost")
        await daemon.supervisor.restart("web", hard=True)
        async with asyncio.timeout(60):
            while one.cause:
                await one.changed.wait()

    stage.play(scene)


def test_faults_on_purpose_are_the_running_machines_and_end_with_its_run(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        one = await daemon.supervisor.create(spec(disks=[{"size": "1MiB"}]))
        with pytest.raises(ConflictError, match="web is stopped, it cannot be given faults"):
            await set_faults(daemon.supervisor, "web", 0, {"stuck": True})
        await daemon.supervisor.start("web")
        with pytest.raises(NotFoundError, match="web has no disk 1"):
            await set_faults(daemon.supervisor, "web", 1, {"stuck": True})
        with pytest.raises(UsageError, match="no effect"):
            await set_faults(daemon.supervisor, "web", 0, {"seed": 3, "stuck": False})
        await set_faults(daemon.supervisor, "web", 0, {"stuck": True})
        assert await list_faults(daemon.supervisor, "web") == [DiskFaults(disk=0, stuck=True, faulted=3)]
        assert (one.cause, one.state) == ("faults on purpose on disk0", MachineState.RUNNING)
        await daemon.supervisor.kill("web")
        async with asyncio.timeout(60):
            while one.faults:
                await one.changed.wait()
        assert await list_faults(daemon.supervisor, "web") == []

    stage.play(scene)
