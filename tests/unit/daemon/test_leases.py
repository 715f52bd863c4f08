"""Leases in a daemon on fakes: taken and given back, refused in words, waited for, and true after a crash."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.supervised import DOWN
from nagaya.errors import ConflictError, NagayaError
from nagaya.models.machine import MachineState
from nagaya.plane.imagelock import Access
from nagaya.resources.leases import this_host
from nagaya.spec import MachineSpec
from nagaya.testing import FakePlane, Stage


def spec(name: str, *disks: dict[str, object], **parts: object) -> MachineSpec:
    return MachineSpec.model_validate({"name": name, "memory": "64MiB", "disks": disks, **parts})


@pytest.fixture
def image(stage: Stage) -> str:
    path = stage.paths.cache / "data.img"
    path.write_bytes(bytes(2**20))
    return str(path)


def holders(daemon: Daemon) -> list[tuple[str, str, str]]:
    leases = daemon.supervisor.leases.table.leases.values()
    return sorted((one.holder.name, Path(one.claim.path).name, str(one.claim.access)) for one in leases)


def rows(stage: Stage) -> list[tuple[str, str]]:
    db = sqlite3.connect(stage.paths.database)
    try:
        return sorted(db.execute("SELECT holder_name, path FROM leases"))
    finally:
        db.close()


def edit(stage: Stage, statement: str) -> None:
    db = sqlite3.connect(stage.paths.database)
    db.execute(statement)
    db.commit()
    db.close()


async def notes(daemon: Daemon) -> list[str]:
    return [entry.event for entry in await daemon.supervisor.leases.journal()]


def test_a_machine_has_its_images_while_it_runs(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.parts.images.build("small", {"kind": "fake"}, lambda _step, _fraction: None)
        one = await daemon.supervisor.create(spec("a", {"image": "small"}, {"path": image}))
        assert holders(daemon) == []
        await daemon.supervisor.start("a")
        base = f"{one.row.images[0]}.raw"
        assert sorted(holders(daemon)) == sorted(
            [("a", base, "reader"), ("a", "data.img", "writer"), ("a", "disk0.qcow2", "writer")]
        )
        await daemon.supervisor.leases.flush()
        assert len(rows(stage)) == 3
        await daemon.supervisor.stop("a", 5)
        assert holders(daemon) == []
        await daemon.supervisor.leases.flush()
        assert rows(stage) == []

    stage.play(scene)


def test_a_refusal_names_the_holder_its_host_and_since_when(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        for name in ("a", "b"):
            await daemon.supervisor.create(spec(name, {"path": image}))
        await daemon.supervisor.start("a")
        with pytest.raises(ConflictError) as caught:
            await daemon.supervisor.start("b")
        words = f"b cannot write {image} (disk0): a on host {this_host().name} writes it since 20"
        assert caught.value.message.startswith(words)
        assert f"nagaya lease transfer {image} b" in caught.value.hint
        assert caught.value.facts["holder"] == "a"
        b = daemon.supervisor.get("b")
        assert (b.row.state, b.row.cause) == (MachineState.FAILED, caught.value.message)
        assert await notes(daemon) == ["refused"]
        plane = daemon.parts.plane
        assert isinstance(plane, FakePlane)
        owners = {device.partition("/")[0] for device in plane.devices}
        assert owners == {daemon.supervisor.get("a").row.id, "%default"}
        await daemon.supervisor.stop("a", 5)
        await daemon.supervisor.start("b")

    stage.play(scene)


def test_of_many_starts_at_once_exactly_one_wins(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        names = [f"m{number}" for number in range(12)]
        for name in names:
            await daemon.supervisor.create(spec(name, {"path": image}))
        starts = (daemon.supervisor.start(name) for name in names)
        results = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(result, ConflictError) for result in results) == 11
        (winner,) = [result for result in results if not isinstance(result, BaseException)]
        assert holders(daemon) == [(winner.name, "data.img", "writer")]

    stage.play(scene)


def test_readers_share_and_sharers_share(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        for number in range(2):
            await daemon.supervisor.create(spec(f"r{number}", {"path": image, "read_only": True}))
            await daemon.supervisor.create(spec(f"s{number}", {"path": image, "shared": True}))
        for name in ("r0", "r1"):
            await daemon.supervisor.start(name)
        with pytest.raises(ConflictError, match=r"s0 cannot share .* r0 .* reads it"):
            await daemon.supervisor.start("s0")
        for name in ("r0", "r1"):
            await daemon.supervisor.stop(name, 5)
        for name in ("s0", "s1"):
            await daemon.supervisor.start(name)
        with pytest.raises(ConflictError, match=r"r0 cannot read .* s0 .* shares it"):
            await daemon.supervisor.start("r0")

    stage.play(scene)


def test_a_start_that_fails_keeps_no_lease(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("a", {"path": image}, boot={"cmdline": "fake.refuse"}))
        with pytest.raises(NagayaError, match="refuse"):
            await daemon.supervisor.start("a")
        assert holders(daemon) == []

    stage.play(scene)


def test_a_machine_that_ends_by_itself_gives_its_images_back(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("a", {"path": image}, boot={"cmdline": "fake.end=0.05:0"}))
        await daemon.supervisor.start("a")
        await daemon.supervisor.wait("a", DOWN, 5)
        assert holders(daemon) == []

    stage.play(scene)


def test_the_next_daemon_knows_the_leases_of_what_runs_even_without_rows(stage: Stage, image: str) -> None:
    seen: list[object] = []

    async def first(daemon: Daemon) -> None:
        for name in ("a", "b"):
            await daemon.supervisor.create(spec(name, {"path": image}))
        await daemon.supervisor.start("a")
        seen.extend(daemon.supervisor.leases.table.leases.values())

    async def second(daemon: Daemon) -> None:
        assert list(daemon.supervisor.leases.table.leases.values()) == seen
        with pytest.raises(ConflictError, match="a on host"):
            await daemon.supervisor.start("b")

    async def third(daemon: Daemon) -> None:
        assert holders(daemon) == [("a", "data.img", "writer")]
        with pytest.raises(ConflictError, match="a on host"):
            await daemon.supervisor.start("b")

    stage.play(first)
    stage.play(second)
    edit(stage, "DELETE FROM leases")
    stage.play(third)
    assert len(rows(stage)) == 1


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE leases SET boot_id = 'another'", "the host has restarted"),
        ("UPDATE machines SET state = 'stopped', pid = NULL", "its holder does not run any more"),
    ],
)
def test_a_row_never_outlives_the_truth(stage: Stage, image: str, statement: str, why: str) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("a", {"path": image}))
        await daemon.supervisor.start("a")

    async def second(daemon: Daemon) -> None:
        (note,) = await daemon.supervisor.leases.journal()
        assert (note.event, note.detail) == ("ended", f"{image}: a had it: {why}")
        assert (await daemon.supervisor.leases.journal(image))[0] == note
        assert await daemon.supervisor.leases.journal("/elsewhere") == []

    stage.play(first)
    edit(stage, statement)
    stage.play(second)


def test_a_lease_of_another_host_is_believed_after_a_reboot_too(stage: Stage, image: str) -> None:
    async def first(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("a", {"path": image}))
        await daemon.supervisor.create(spec("b", {"path": image}))
        await daemon.supervisor.start("a")

    async def second(daemon: Daemon) -> None:
        with pytest.raises(ConflictError, match="on host far writes it") as caught:
            await daemon.supervisor.start("b")
        assert "another host's" in caught.value.hint

    stage.play(first)
    edit(
        stage, "UPDATE leases SET host = 'far', host_id = 'f', boot_id = 'f', holder_id = 'x', expires_at = 1"
    )
    edit(stage, "UPDATE machines SET state = 'stopped', pid = NULL")
    stage.play(second)


def test_a_base_image_is_never_written_under_whatever_name(stage: Stage) -> None:
    alias = stage.paths.cache / "alias"

    async def scene(daemon: Daemon) -> None:
        base = await daemon.parts.images.build("small", {"kind": "fake"}, lambda _step, _fraction: None)
        alias.hardlink_to(base.path)
        disks: list[dict[str, object]] = [{"path": str(base.path)}, {"path": str(alias), "shared": True}]
        for number, disk in enumerate(disks):
            name = f"w{number}"
            await daemon.supervisor.create(spec(name, disk))
            with pytest.raises(ConflictError, match=rf"{name} cannot write .* is a base image of the store"):
                await daemon.supervisor.start(name)
        await daemon.supervisor.create(spec("r", {"path": str(alias), "read_only": True}))
        await daemon.supervisor.start("r")
        assert holders(daemon) == [("r", "alias", "reader")]

    stage.play(scene)


def test_a_job_of_the_daemon_keeps_machines_out_and_is_kept_out(stage: Stage, image: str) -> None:
    async def scene(daemon: Daemon) -> None:
        await daemon.supervisor.create(spec("a", {"path": image}))
        leases = daemon.supervisor.leases
        async with leases.held("disk convert", {image: Access.READER}):
            with pytest.raises(ConflictError, match="disk convert on host"):
                await daemon.supervisor.start("a")
        await daemon.supervisor.start("a")
        with pytest.raises(ConflictError, match="disk convert cannot read"):
            async with leases.held("disk convert", {image: Access.READER}):
                os.abort()

    stage.play(scene)


def test_waiting_ends_with_the_leases_kept_for_a_while(stage: Stage, image: str) -> None:
    async def first(daemon: Daemon) -> None:
        supervisor, leases = daemon.supervisor, daemon.supervisor.leases
        for name in ("a", "b", "c"):
            await supervisor.create(spec(name, {"path": image}))
        await supervisor.start("a")
        for name in ("b", "c"):
            one = supervisor.get(name)
            await leases.wait(one.row.id, name, supervisor.devices(one), None)
        c = supervisor.get("c")
        found = leases.waiting(c.row.id, "c")
        assert (found.state, found.position) == ("waiting", 2)
        assert "a on host" in found.reason

    async def second(daemon: Daemon) -> None:
        supervisor, leases = daemon.supervisor, daemon.supervisor.leases
        b, c = supervisor.get("b").row.id, supervisor.get("c").row.id
        assert leases.waiting(b, "b").position == 1, "the queue outlives the daemon"
        await supervisor.stop("a", 5)
        assert leases.waiting(b, "b").state == "granted"
        with pytest.raises(ConflictError, match=r"b on host .* has it reserved"):
            await supervisor.start("a")
        await supervisor.start("b")
        await leases.give_up(c)
        assert leases.waiting(c, "c").state == "ended"
        assert await notes(daemon) == ["granted", "refused"]

    stage.play(first)
    stage.play(second)


def test_who_does_not_come_in_time_loses_its_place(
    stage: Stage, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nagaya.resources.leases.GRANT_S", 0.05)

    async def scene(daemon: Daemon) -> None:
        supervisor, leases = daemon.supervisor, daemon.supervisor.leases
        for name in ("a", "b", "c"):
            await supervisor.create(spec(name, {"path": image}))
        await supervisor.start("a")
        for name, seconds in (("b", 0.05), ("c", None)):
            one = supervisor.get(name)
            await leases.wait(one.row.id, name, supervisor.devices(one), seconds)
        b, c = supervisor.get("b").row.id, supervisor.get("c").row.id
        async with asyncio.timeout(5):
            while leases.waiting(b, "b").state == "waiting":
                await leases.change(1)
            await supervisor.stop("a", 5)
            assert leases.waiting(c, "c").state == "granted"
            while leases.waiting(c, "c").state == "granted":
                await leases.change(1)
        assert await notes(daemon) == ["gave up", "granted", "expired"]
        await supervisor.delete("b")
        await supervisor.delete("c")
        assert (leases.table.leases, leases.table.waiters) == ({}, {})

    stage.play(scene)
