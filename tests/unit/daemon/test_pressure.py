"""The daemon's looks at pressure: charged to machines by name, said in words, and alarms are events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nagaya.daemon import pressure, waits
from nagaya.daemon.daemon import Daemon
from nagaya.resources.pressure import GroupPressure, HostPressure, Stall
from nagaya.resources.stalls import HOST
from nagaya.spec import MachineSpec
from nagaya.testing import Stage, fake_parts

S = 1_000_000
CPU = frozenset({0})


class Counters:
    """What the kernel counts of two machines and the host, moved on by hand."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.groups: dict[str, GroupPressure] = {}
        self.read: list[str] = []
        self.host = HostPressure(cpu=Stall(0, 0), memory=Stall(0, 0), memory_available=2**40, busy_us={0: 0})

    def usage(self, machine: str) -> tuple[int | None, int | None]:
        return self.used.get(machine), None

    def pressure(self, machine: str) -> GroupPressure:
        self.read.append(machine)
        return self.groups.get(machine, GroupPressure())


async def start(daemon: Daemon, counters: Counters, **db: Any) -> tuple[str, str]:
    """Machines `db` and `web` run; their ids. The daemon looks only when it is told to."""
    ids = []
    for name, spec in (("db", db), ("web", {})):
        one = await daemon.supervisor.create(MachineSpec.model_validate({"name": name, **spec}))
        await daemon.supervisor.start(name)
        ids.append(one.row.id)
        counters.used[one.row.id], counters.groups[one.row.id] = 0, GroupPressure(0, 0, 0, 0, cpus=CPU)
    await daemon.supervisor.pressure.look()
    return ids[0], ids[1]


def play(stage: Stage, monkeypatch: pytest.MonkeyPatch, scene: Callable[[Daemon, Counters], Any]) -> None:
    """`scene` with counters of its own; every look is a fresh one."""
    monkeypatch.setattr(pressure, "FRESH", 0.0)
    monkeypatch.setattr(pressure, "INTERVAL", 3600.0)
    counters = Counters()
    parts = replace(
        fake_parts(stage.paths),
        usage=counters.usage,
        pressure=counters.pressure,
        host_pressure=lambda: counters.host,
    )
    stage.play(lambda daemon: scene(daemon, counters), parts)


def test_why_says_who_ran_instead_and_what_would_change_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        db, web = await start(daemon, counters, cpu={"limit": 0.5})
        counters.used |= {db: S, web: 3 * S}
        counters.groups[db] = GroupPressure(4 * S, 4 * S, S, 0, cpus=CPU)
        answer = await waits.why(daemon.supervisor, "db", 60)
        assert answer.words == [
            "db waited 4 s for a CPU in the last minute (7% of the time).",
            "3 s (75%) because web ran.",
            "1 s (25%) at its limit (cpu.limit=0.5).",
        ]
        assert [advice.command for advice in answer.advice] == [
            "nagaya set db cpu.weight=200",
            "nagaya set db cpu.limit=1",
        ]
        assert [(row.resource, row.cause, row.whom) for row in answer.rows] == [
            ("cpu", "machine", "web"),
            ("cpu", "limit", ""),
        ]
        assert (await waits.why(daemon.supervisor, "db", 60, "disk")).rows == []

    play(stage, monkeypatch, scene)


def test_beside_programs_of_the_host_a_reservation_helps_and_what_is_nothing_is_not_said(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        db, web = await start(daemon, counters)
        counters.used |= {db: S // 1000, web: S // 1000}
        counters.host = replace(counters.host, busy_us={0: 4 * S})
        counters.groups[db] = GroupPressure(4 * S, 0, 0, 0, cpus=CPU)
        answer = await waits.why(daemon.supervisor, "db", 60)
        assert answer.words == [
            "db waited 4 s for a CPU in the last minute (7% of the time).",
            "4 s (100%) because programs of the host ran.",
        ]
        assert {("machine", HOST), ("machine", "web")} <= {(row.cause, row.whom) for row in answer.rows}
        assert [advice.command for advice in answer.advice] == ["nagaya set db cpu.reservation=0.5"]

    play(stage, monkeypatch, scene)


def test_a_stall_for_memory_is_said_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        db, _ = await start(daemon, counters)
        counters.used[db] = S
        counters.groups[db] = GroupPressure(0, 0, 0, 6 * S, cpus=CPU)
        answer = await waits.why(daemon.supervisor, "db", 60, "memory")
        assert answer.words == [
            "db waited 6 s for memory in the last minute (10% of the time).",
            "6 s (100%) because the host had too little, and took back pages that were needed again.",
        ]

    play(stage, monkeypatch, scene)


def test_a_stall_for_memory_names_who_holds_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        db, web = await start(daemon, counters)
        counters.used[db] = S
        counters.groups[db] = GroupPressure(0, 0, 0, 8 * S, cpus=CPU)
        async with daemon.supervisor.memory._turn:
            daemon.supervisor.memory.holders = {db: -1, web: 3 * S, HOST: S}
            answer = await waits.why(daemon.supervisor, "db", 60, "memory")
        assert answer.words[1:] == [
            "6 s (75%) because web holds more than its share.",
            "2 s (25%) because programs of the host hold memory that is the machines'.",
        ]
        assert [advice.command for advice in answer.advice] == ["nagaya why db --memory"]

    play(stage, monkeypatch, scene)


def test_of_a_machine_that_did_nothing_no_more_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        db, _ = await start(daemon, counters)
        counters.read.clear()
        counters.used[db] = 5
        await daemon.supervisor.pressure.look()
        assert counters.read == [db]

    play(stage, monkeypatch, scene)


def test_an_alarm_is_an_event_when_it_begins_and_when_it_ends(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        await start(daemon, counters)
        with daemon.events.subscribe() as news:
            for part in (0.2, 0.3, 0.0):
                counters.host = HostPressure(memory=Stall(0, 0, part, part), memory_available=2**40)
                await daemon.supervisor.pressure.look()
            found = [await asyncio.wait_for(anext(news.__aiter__()), 60) for _ in range(2)]
        assert [(one["event"], one["name"], one["raised"]) for one in found] == [
            ("pressure", "memory stalls", True),
            ("pressure", "memory stalls", False),
        ]
        assert daemon.supervisor.pressure.host().alarms == []

    play(stage, monkeypatch, scene)


def test_the_steal_of_the_hosts_own_host_is_an_alarm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, counters: Counters) -> None:
        await start(daemon, counters)
        for steal in (0, 10**12):
            counters.host = HostPressure(memory_available=2**40, steal_us=steal, busy_us={0: 0})
            await daemon.supervisor.pressure.look()
        assert [alarm.name for alarm in daemon.supervisor.pressure.host().alarms] == ["cpu stolen"]

    play(stage, monkeypatch, scene)
