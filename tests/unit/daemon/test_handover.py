"""Leases that change hands by command: transferred, broken, and those of other hosts."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from nagaya.daemon import handover as handover_module
from nagaya.daemon.adoption import start_time
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.handover import Handover
from nagaya.daemon.leaseviews import LeaseViews
from nagaya.daemon.remoteleases import RemoteLeases
from nagaya.engines.engine import Machine, ProcessId
from nagaya.errors import ConflictError, NotFoundError, TimeoutExpiredError, UsageError
from nagaya.models.machine import MachineState
from nagaya.plane.imagelock import Access, lock_image
from nagaya.resources.leases import Host
from nagaya.spec import MachineSpec
from nagaya.testing import FakePlane, Stage
from nagaya.testing.engine import FakeEngine

FAR = Host("far", "far-id", "boot-1")


@pytest.fixture
def image(stage: Stage) -> str:
    path = stage.paths.cache / "data.img"
    path.write_bytes(bytes(2**20))
    return str(path)


def commands(daemon: Daemon) -> tuple[Handover, RemoteLeases, LeaseViews]:
    views = LeaseViews(daemon.supervisor)
    remote = RemoteLeases(daemon.supervisor.leases, views)
    return Handover(daemon.supervisor, views, remote), remote, views


async def make(daemon: Daemon, *names: str, image: str, **parts: object) -> None:
    for name in names:
        spec = {"name": name, "memory": "64MiB", "disks": [{"size": "1MiB"}, {"path": image}], **parts}
        await daemon.supervisor.create(MachineSpec.model_validate(spec))


async def notes(daemon: Daemon, image: str) -> list[str]:
    return [entry.event for entry in await daemon.supervisor.leases.journal(image)]


def devices(daemon: Daemon, name: str) -> set[str]:
    plane = daemon.parts.plane
    assert isinstance(plane, FakePlane)
    machine_id = daemon.supervisor.get(name).row.id
    return {device.partition("/")[2] for device in plane.devices if device.startswith(f"{machine_id}/")}


def test_a_transfer_stops_the_holder_and_jumps_the_queue(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", "b", "c", image=image)
        await daemon.supervisor.start("a")
        await handover.wait("c", None)
        with pytest.raises(ConflictError, match=r"a runs and has .* as its disk1") as caught:
            await handover.transfer(image, "b", "", 5)
        assert "--stop" in caught.value.hint
        assert (await handover.transfer(image, "b", "stop", 5)).state == "granted"
        assert daemon.supervisor.get("a").row.state is MachineState.STOPPED
        assert [(info.machine, info.state) for info in await views.all(image)] == [("b", "reserved")]
        assert (await handover.waiting("c", 0)).position == 1
        await daemon.supervisor.start("b")
        (lease,) = await views.all(image)
        assert (lease.machine, lease.state, lease.waiting) == ("b", "held", ["c"])
        assert await notes(daemon, image) == ["granted", "transferred"]

    stage.play(scene)


def test_a_transfer_may_close_the_disk_under_its_holder(stage: Stage, image: str) -> None:
    async def first(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", "b", image=image)
        await daemon.supervisor.start("a")
        root = (await views.all("a/disk0"))[0].path
        await make(daemon, "thief", image=root)
        with pytest.raises(ConflictError, match="disk0 of a holds its root"):
            await handover.transfer("a/disk0", "thief", "detach", 5)
        await handover.transfer(image, "b", "detach", 5)
        await daemon.supervisor.start("b")
        assert devices(daemon, "a") == {"disk0", "net0", "console", "rng", "balloon0"}
        assert daemon.supervisor.get("a").row.state is MachineState.RUNNING
        states = {info.machine: info.state for info in await views.all(image)}
        assert states == {"a": "closed", "b": "held"}
        entries = await daemon.supervisor.journal("a", 10)
        assert [entry.detail for entry in entries if entry.event == "disk closed"] == [
            "disk1 goes to b; its guest failed to write back"
        ]

    async def second(daemon: Daemon) -> None:
        assert daemon.supervisor.get("a").row.state is MachineState.RUNNING, "its closed disk is known"
        await daemon.supervisor.stop("a", 5)
        with pytest.raises(ConflictError, match=r"a cannot write .* b on host"):
            await daemon.supervisor.start("a")

    stage.play(first)
    stage.play(second)


def test_what_cannot_be_transferred_is_refused_before_anything_is_done(stage: Stage, image: str) -> None:
    other = f"{image}.2"
    Path(other).write_bytes(bytes(2**20))

    async def scene(daemon: Daemon) -> None:
        handover, _, _ = commands(daemon)
        await make(daemon, "a", image=image)
        await make(daemon, "o", image=other)
        disks = [{"path": image}, {"path": other}]
        await daemon.supervisor.create(MachineSpec.model_validate({"name": "both", "disks": disks}))
        for name in ("a", "o"):
            await daemon.supervisor.start(name)
        with pytest.raises(ConflictError, match=r"both cannot write .*2 .* o on host"):
            await handover.transfer(image, "both", "stop", 5)
        with pytest.raises(UsageError, match="o has no disk on"):
            await daemon.supervisor.stop("o", 5)
            await handover.transfer(image, "o", "stop", 5)
        with pytest.raises(ConflictError, match="a is running, it cannot be given a lease"):
            await handover.transfer(image, "a", "stop", 5)
        with pytest.raises(NotFoundError):
            await handover.transfer("no-such-image", "o", "stop", 5)
        assert daemon.supervisor.get("a").row.state is MachineState.RUNNING
        assert daemon.supervisor.leases.table.waiters == {}

    stage.play(scene)


def test_a_transfer_that_fails_leaves_the_lease_where_it_was(
    stage: Stage, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", "b", image=image)
        await daemon.supervisor.start("a")

        async def fail(_id: str) -> None:
            raise ConflictError("the disk does not answer")

        with monkeypatch.context() as patch:
            patch.setattr(daemon.parts.plane, "device_del", fail)
            with pytest.raises(ConflictError, match="does not answer"):
                await handover.transfer(image, "b", "detach", 5)
        assert [(info.machine, info.state) for info in await views.all(image)] == [("a", "held")]
        assert daemon.supervisor.leases.table.waiters == {}

    stage.play(scene)


def test_a_break_needs_force_and_kills_the_holder_first(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", "b", image=image, restart="always")
        await daemon.supervisor.start("a")
        (lease,) = await views.all(image)
        with pytest.raises(ConflictError, match=r"a runs and has .*: breaking its lease ends it"):
            await handover.break_lease(lease.id, force=False)
        pid = daemon.supervisor.get("a").row.pid
        assert pid is not None
        done = await handover.break_lease(lease.id, force=True)
        assert (done.fenced, done.warning) == ("a was killed and its disks closed", "")
        assert start_time(pid) is None
        assert daemon.supervisor.get("a").row.state is MachineState.STOPPED
        assert devices(daemon, "a") == set()
        entries = await daemon.supervisor.journal("a", 10)
        assert (entries[-1].event, entries[-1].detail) == ("lease broken", image)
        assert await notes(daemon, image) == ["broken"]
        await daemon.supervisor.start("b")

    stage.play(scene)


class Undying(FakeEngine):
    """Its machines do not end when they are killed."""

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        await asyncio.sleep(3600)


def test_a_holder_that_does_not_end_keeps_its_lease(
    stage: Stage, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_module, "FENCE_S", 0.1)

    async def scene(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", "b", image=image)
        await daemon.supervisor.start("a")
        (lease,) = await views.all(image)
        process = daemon.supervisor.get("a").require_process()
        usual, process.engine = process.engine, Undying()
        with pytest.raises(TimeoutExpiredError, match=r"could not be ended within .*; its lease on .* stays"):
            await handover.break_lease(lease.id, force=True)
        process.engine = usual
        with pytest.raises(ConflictError, match="a on host"):
            await daemon.supervisor.start("b")

    stage.play(scene)


def test_a_lock_that_another_program_holds_stops_a_break(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        await make(daemon, "a", image=image)
        await daemon.supervisor.start("a")
        (lease,) = await views.all(image)
        fd = os.open(image, os.O_RDWR)
        try:
            assert lock_image(fd, Access.WRITER)
            with pytest.raises(
                ConflictError, match=rf"is locked by .*\(pid {os.getpid()}, on this host since 20"
            ):
                await handover.break_lease(lease.id, force=True)
        finally:
            os.close(fd)

    stage.play(scene)


def test_a_lease_of_another_host_can_be_renewed_released_and_broken_after_its_time(
    stage: Stage, image: str
) -> None:
    async def first(daemon: Daemon) -> None:
        handover, remote, views = commands(daemon)
        await make(daemon, "b", image=image)
        lease = await remote.claim(image, Access.WRITER, FAR, "m", 60)
        assert (lease.state, lease.machine, lease.host) == ("remote", "m", "far")
        with pytest.raises(ConflictError, match="m on host far writes it"):
            await daemon.supervisor.start("b")
        with pytest.raises(ConflictError, match=r"n on host far cannot write .* m on host far"):
            await remote.claim(image, Access.WRITER, FAR, "n", 60)
        with pytest.raises(ConflictError, match="for another 60 s, and nobody here can stop it"):
            await handover.break_lease(lease.id, force=True)
        with pytest.raises(ConflictError, match="m on host far"):
            await handover.transfer(image, "b", "stop", 5)
        renewed = await remote.renew(lease.id, 600)
        assert renewed.expires_at is not None
        assert lease.expires_at is not None
        assert renewed.expires_at > lease.expires_at + 500
        await remote.release(lease.id)
        assert await views.all(image) == []
        await remote.claim(image, Access.WRITER, FAR, "m", 60)

    async def second(daemon: Daemon) -> None:
        handover, _, views = commands(daemon)
        (lease,) = await views.all(image)
        assert lease.state == "expired"
        await handover.wait("b", None)
        assert (await handover.waiting("b", 0)).state == "waiting", "it may still write"
        with pytest.raises(ConflictError, match=r"ended .* s ago, but it may still write"):
            await handover.break_lease(lease.id, force=False)
        done = await handover.break_lease(lease.id, force=True)
        assert "two will write" in done.warning
        assert (await handover.waiting("b", 0)).state == "granted"
        assert (await notes(daemon, image))[-2:] == ["broken", "granted"]

    stage.play(first)
    db = sqlite3.connect(stage.paths.database)
    db.execute("UPDATE leases SET expires_at = 1")
    db.commit()
    db.close()
    stage.play(second)


def test_who_claims_for_this_host_or_a_locked_image_is_refused(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        _, remote, _ = commands(daemon)
        with pytest.raises(UsageError, match="this is that host"):
            await remote.claim(image, Access.WRITER, daemon.supervisor.leases.host, "m", 60)
        with pytest.raises(UsageError, match="ttl: 1 s is outside"):
            await remote.claim(image, Access.WRITER, FAR, "m", 1)
        fd = os.open(image, os.O_RDWR)
        try:
            assert lock_image(fd, Access.READER)
            with pytest.raises(ConflictError, match="is locked by"):
                await remote.claim(image, Access.WRITER, FAR, "m", 60)
            await remote.claim(image, Access.READER, FAR, "m", 60)
        finally:
            os.close(fd)
        await make(daemon, "a", image=f"{image}.a")

    Path(f"{image}.a").write_bytes(bytes(2**20))
    stage.play(scene)


def test_resources_have_the_names_that_people_know(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        _, _, views = commands(daemon)
        await daemon.parts.images.build("small", {"kind": "fake"}, lambda _step, _fraction: None)
        spec = {"name": "a", "memory": "64MiB", "disks": [{"image": "small"}, {"path": image}]}
        await daemon.supervisor.create(MachineSpec.model_validate(spec))
        await daemon.supervisor.start("a")
        found = await views.all()
        assert [(info.resource, info.access) for info in found] == [
            (image, "writer"),
            ("a/disk0", "writer"),
            ("image small", "reader"),
        ]
        for name, info in (("a/disk0", found[1]), ("small", found[2]), (found[0].id, found[0])):
            assert await views.all(name) == [info]
        named = daemon.paths.disks / "data" / "disk.qcow2"
        async with daemon.supervisor.leases.held("a job", {str(named): Access.WRITER}):
            assert "disk data" in [info.resource for info in await views.all()]
        with pytest.raises(NotFoundError, match="a has no disk7"):
            await views.all("a/disk7")

    stage.play(scene)
