"""The broker at work on fakes: it looks, moves, writes down what came, and says why."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from nagaya.daemon import memorywhy
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.parts import Parts
from nagaya.errors import ConflictError, SpecError, UnavailableError
from nagaya.models.memory import MemoryMove
from nagaya.plane.balloons import BalloonStatus
from nagaya.resources.workingset import MIB
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.stores import fake_parts

SIZE = 1024 * MIB


def parts_with(stage: Stage, held: dict[str, int]) -> Parts:
    """Fakes whose machines hold so much of the host's memory, by id; `held` may change."""
    return replace(fake_parts(stage.paths), usage=lambda machine_id: (0, held.get(machine_id, 0)))


async def started(daemon: Daemon, name: str, **memory: Any) -> str:
    spec = {"name": name, "memory": {"size": "1GiB", **memory}, "disks": [{"size": "1MiB"}]}
    one = await daemon.supervisor.create(MachineSpec.model_validate(spec))
    await daemon.supervisor.start(name)
    return one.row.id


def says(daemon: Daemon, machine_id: str, **stats: int) -> None:
    """The guest's statistics from now on."""
    file = daemon.paths.run / "fake-balloons.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    known.setdefault(f"{machine_id}/balloon0", {})["stats"] = stats
    file.write_text(json.dumps(known))


async def balloon(daemon: Daemon, machine_id: str) -> BalloonStatus:
    rows = await daemon.parts.plane.balloons()
    return next(row for row in rows if row.id == f"{machine_id}/balloon0")


async def idle_beside_busy(daemon: Daemon, held: dict[str, int]) -> tuple[str, str]:
    """A machine full of caches, one in need, and a budget that is too small for both."""
    idle, busy = await started(daemon, "idle"), await started(daemon, "busy", weight=200)
    held |= {idle: 900 * MIB, busy: 250 * MIB}
    says(daemon, idle, free=100 * MIB, available=900 * MIB, swap_in=0)
    says(daemon, busy, free=MIB, available=MIB, swap_in=0)
    await daemon.parts.plane.set_balloon(f"{busy}/balloon0", 700 * MIB)
    await daemon.supervisor.memory.set([("budget", "1200MiB")])
    return idle, busy


def play(stage: Stage, scene: Any, held: dict[str, int]) -> None:
    stage.play(lambda daemon: scene(daemon, held), parts_with(stage, held))
    stage.clear()


def test_memory_moves_and_what_came_is_written_down(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        memory = daemon.supervisor.memory
        with daemon.events.subscribe() as news:
            idle, busy = await idle_beside_busy(daemon, held)
            for _ in range(8):  # what the machines held at once looked like growth
                await memory.round()
                held[idle] = min(held[idle], SIZE - (await balloon(daemon, idle)).size)
            async with asyncio.timeout(60):
                moves = (one async for one in news if one["event"] == "memory")
                event = await anext(one async for one in moves if one["whom"] == ["busy"] != [one["machine"]])
        assert (await balloon(daemon, idle)).size > 0
        assert (await balloon(daemon, busy)).size < 700 * MIB
        assert (event["kind"], event["machine"]) == ("take", "idle")
        first = next(one for one in memory.moves.since(60) if one.machine == "idle" and one.whom == ["busy"])
        assert first.reason.startswith("busy needs memory, and ")
        assert first.came == first.bytes
        assert first.after is not None

    play(stage, scene, {})


def test_a_plan_does_nothing(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        memory = daemon.supervisor.memory
        await memory.set([("broker", False)])
        idle, _ = await idle_beside_busy(daemon, held)
        answer = await memory.show()
        assert [move.machine for move in answer.moves if move.kind == "take"] == ["idle"]
        assert (await memory.show()).moves[0].bytes == answer.moves[0].bytes
        assert (await balloon(daemon, idle)).size == 0
        await memory.round()
        assert memory.moves.since(60) == []

    play(stage, scene, {})


def test_while_memory_suffices_nothing_moves_and_rounds_are_seldom(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        machine = await started(daemon, "db")
        held[machine] = 100 * MIB
        says(daemon, machine, free=900 * MIB, available=900 * MIB)
        assert await daemon.supervisor.memory.round() == 5.0
        assert daemon.supervisor.memory.moves.since(60) == []

    play(stage, scene, {})


def test_the_next_daemon_goes_on_with_the_sizes_that_are_there(stage: Stage) -> None:
    held: dict[str, int] = {}
    ids: list[str] = []
    sizes: list[int] = []

    async def first(daemon: Daemon, held: dict[str, int]) -> None:
        ids.extend(await idle_beside_busy(daemon, held))
        for _ in range(4):
            await daemon.supervisor.memory.round()
        sizes.extend([(await balloon(daemon, one)).size for one in ids])

    async def second(daemon: Daemon, held: dict[str, int]) -> None:
        memory = daemon.supervisor.memory
        assert memory.settings.budget == 1200 * MIB
        held |= {one: SIZE - size for one, size in zip(ids, sizes, strict=True)}
        says(daemon, ids[0], free=MIB, available=300 * MIB)
        says(daemon, ids[1], free=MIB, available=200 * MIB)
        await memory.round()
        for one, size in zip(ids, sizes, strict=True):
            assert abs((await balloon(daemon, one)).size - size) <= 64 * MIB

    stage.play(lambda daemon: first(daemon, held), parts_with(stage, held))
    stage.play(lambda daemon: second(daemon, held), parts_with(stage, held))
    stage.clear()


def test_moves_outlive_the_daemon(stage: Stage) -> None:
    held: dict[str, int] = {}
    moves: list[MemoryMove] = []

    async def first(daemon: Daemon) -> None:
        await idle_beside_busy(daemon, held)
        for _ in range(4):
            await daemon.supervisor.memory.round()
        moves.extend(daemon.supervisor.memory.moves.since(60))

    async def second(daemon: Daemon) -> None:
        found = daemon.supervisor.memory.moves.since(60)
        assert [(one.at, one.machine) for one in found] == [(one.at, one.machine) for one in moves]
        answer = await memorywhy.why(daemon.supervisor, "idle", 60)
        assert answer.moves == [one for one in found if one.machine == "idle"] != []

    stage.play(first, parts_with(stage, held))
    stage.play(second, parts_with(stage, held))
    stage.clear()


def test_a_state_that_cannot_be_written_stops_no_move_and_has_all_once_it_can(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        idle, _ = await idle_beside_busy(daemon, held)
        memory = daemon.supervisor.memory
        state = memory._writer.state
        state._db.execute("PRAGMA query_only = 1")
        before = state.memory_moves()  # the daemon's own round may have been first
        for _ in range(4):
            await memory.round()
            if memory.moves._saving is not None:
                await memory.moves._saving
        assert (await balloon(daemon, idle)).size > 0
        assert len(memory.moves.since(60)) > len(before)
        assert state.memory_moves() == before
        assert caplog.text.count("moves of memory cannot be recorded") == 1
        state._db.execute("PRAGMA query_only = 0")
        await memory.moves.close()
        assert list(state.memory_moves().values()) == memory.moves.since(60)

    play(stage, scene, {})


def test_on_a_host_that_counts_nothing_guests_are_taken_at_their_word(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        idle, _ = await idle_beside_busy(daemon, held)
        for _ in range(4):
            await daemon.supervisor.memory.round()
        rows = daemon.supervisor.memory.moves.since(60)
        assert {(row.machine, row.resident) for row in rows if row.kind == "take"} == {("idle", None)}
        assert (await balloon(daemon, idle)).size > 0
        shown = {one.name: one.resident for one in (await daemon.supervisor.memory.show()).machines}
        assert shown == {"idle": None, "busy": None}

    parts = replace(fake_parts(stage.paths), usage=lambda _machine: (None, None))
    stage.play(lambda daemon: scene(daemon, {}), parts)
    stage.clear()


def test_a_balloon_that_cannot_be_told_keeps_no_other_from_moving(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        idle, _ = await idle_beside_busy(daemon, held)
        deaf = await started(daemon, "deaf")
        held[deaf] = 900 * MIB
        says(daemon, deaf, free=100 * MIB, available=900 * MIB)
        tell = daemon.parts.plane.set_balloon

        async def but_one(device_id: str, size: int | None, **more: Any) -> None:
            if size is not None and device_id.startswith(deaf):
                raise UnavailableError("the plane is away")
            await tell(device_id, size, **more)

        monkeypatch.setattr(daemon.parts.plane, "set_balloon", but_one)
        for _ in range(4):
            await daemon.supervisor.memory.round()
        assert (await balloon(daemon, idle)).size > 0
        assert (await balloon(daemon, deaf)).size == 0
        assert "deaf" not in {move.machine for move in daemon.supervisor.memory.moves.since(60)}

    play(stage, scene, {})


def test_a_broker_that_dies_in_the_middle_of_a_round_is_followed_by_one_that_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[str, int] = {}
    ids: list[str] = []

    async def first(daemon: Daemon) -> None:
        ids.extend(await idle_beside_busy(daemon, held))
        tell, told = daemon.parts.plane.set_balloon, asyncio.Event()

        async def and_no_more(device_id: str, size: int | None, **more: Any) -> None:
            if told.is_set():
                await asyncio.Event().wait()
            await tell(device_id, size, **more)
            if size is not None:
                told.set()

        monkeypatch.setattr(daemon.parts.plane, "set_balloon", and_no_more)
        memory = daemon.supervisor.memory
        dying = asyncio.gather(*(memory.round() for _ in range(4)), return_exceptions=True)
        async with asyncio.timeout(60):
            await told.wait()
        dying.cancel()

    async def second(daemon: Daemon) -> None:
        before = [(await balloon(daemon, one)).size for one in ids]
        assert sorted(before) != [0, 700 * MIB]  # one of two moves was made
        for _ in range(8):
            await daemon.supervisor.memory.round()
            for one in ids:
                held[one] = min(held[one], SIZE - (await balloon(daemon, one)).size)
        idle, busy = [(await balloon(daemon, one)).size for one in ids]
        assert idle > 0
        assert busy < 700 * MIB
        assert SIZE - idle >= 32 * MIB

    stage.play(first, parts_with(stage, held))
    stage.play(second, parts_with(stage, held))
    stage.clear()


def test_why_says_it_in_words(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        memory = daemon.supervisor.memory
        await memory.set([("broker", False)])
        await idle_beside_busy(daemon, held)
        answer = await memorywhy.why(daemon.supervisor, "busy", 60)
        assert answer.words[0] == "busy has 324 MiB of its 1.0 GiB: its guest gave 700 MiB."
        assert "It needs more: its guest has 1.0 MiB left." in answer.words
        assert "Nothing was moved from or to busy in the last minute." in answer.words
        assert "nagaya set busy memory.weight=400" in [advice.command for advice in answer.advice]
        await memory.set([("broker", True)])
        for _ in range(4):
            await memory.round()
        answer = await memorywhy.why(daemon.supervisor, "idle", 60)
        taken = next(line for line in answer.words if line.startswith("In the last minute"))
        assert "were taken from it" in taken
        assert "because busy needs memory" in taken

    play(stage, scene, {})


def test_memory_is_short_also_when_guests_could_grow_into_more_than_is_left(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        promised = await started(daemon, "db", reservation="1GiB")
        says(daemon, promised, free=900 * MIB, available=900 * MIB)
        held[promised] = 100 * MIB
        await daemon.supervisor.memory.set([("budget", "800MiB")])
        await daemon.supervisor.memory.round()
        now = await daemon.supervisor.memory.show()
        assert (now.short, now.left, now.room) == (True, 700 * MIB, 924 * MIB)
        answer = await memorywhy.why(daemon.supervisor, "db", 60)
        assert (
            "Memory is short: 700 MiB of 800 MiB that machines may have are left, and guests could grow by "
            "924 MiB at once." in answer.words
        )

    play(stage, scene, {})


def test_a_machine_in_need_at_its_limit_is_told_which_knob_it_is(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        db = await started(daemon, "db", limit="512MiB")
        held[db] = 400 * MIB
        for knobs, command in (
            ([], "nagaya set db memory.limit=1GiB"),
            ([("memory.limit", "none"), ("memory.size", "256MiB")], "nagaya set db memory.size=1GiB"),
        ):
            await daemon.supervisor.shares.set("db", knobs)
            says(daemon, db, free=MIB, available=MIB)
            answer = await memorywhy.why(daemon.supervisor, "db", 60)
            assert command in [advice.command for advice in answer.advice]

    play(stage, scene, {})


def test_who_holds_what_a_machine_lacks_is_known_while_memory_is_short(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        idle, busy = await idle_beside_busy(daemon, held)
        memory = daemon.supervisor.memory
        await memory.round()
        async with memory._turn:
            assert memory.holders[idle] > 0 > memory.holders[busy]
            answer = await memorywhy.why(daemon.supervisor, "busy", 60)
        assert any(line.startswith("Beyond their shares: idle ") for line in answer.words)
        await memory.set([("broker", False)])
        await memory.round()
        assert memory.holders == {}

    play(stage, scene, {})


def test_a_machine_that_is_down_has_no_memory(stage: Stage) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        spec = {"name": "db", "memory": "64MiB", "disks": [{"size": "1MiB"}]}
        await daemon.supervisor.create(MachineSpec.model_validate(spec))
        with pytest.raises(ConflictError, match="db is stopped, it has no memory"):
            await memorywhy.why(daemon.supervisor, "db", 60)

    play(stage, scene, {})


@pytest.mark.parametrize("field", [("budget", "0"), ("budget", "much"), ("tax", 1)])
def test_settings_that_cannot_be_are_refused(stage: Stage, field: tuple[str, object]) -> None:
    async def scene(daemon: Daemon, held: dict[str, int]) -> None:
        with pytest.raises(SpecError, match=str(field[0])):
            await daemon.supervisor.memory.set([field])

    play(stage, scene, {})
