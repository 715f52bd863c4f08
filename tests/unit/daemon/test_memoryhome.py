"""When memory is moved because its specification wants it elsewhere; the moves need real guests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nagaya.daemon import failpoint
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.memoryhome import Known, MemoryHome
from nagaya.daemon.relocation import Order
from nagaya.engines.check import refuse
from nagaya.errors import UnavailableError, UnsupportedError
from nagaya.knobs import MIB, Memory
from nagaya.models.relocation import MemoryPlace
from nagaya.resources import topology
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.guestmemory import Where
from nagaya.resources.topology import Node
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.stores import fake_parts

HUGE, NODE = Order(huge=True), Order(node=1)


def where(resident: int, huge: int = 0, **nodes: int) -> Where:
    sizes = {int(name.removeprefix("node")): size * MIB for name, size in nodes.items()}
    return Where(resident * MIB, 0, huge * MIB, sizes)


def after(one: Where) -> MemoryPlace:
    return MemoryPlace(one.resident, 0, one.huge, {str(node): size for node, size in one.nodes.items()})


def test_memory_that_grows_is_left_until_it_is_stable() -> None:
    known, memory = Known(7), Memory(huge=True)
    assert list(known.orders(memory, where(100))) == []
    assert list(known.orders(memory, where(200))) == []
    assert list(known.orders(memory, where(203))) == [HUGE]


def test_what_could_not_become_huge_is_not_tried_again() -> None:
    known, memory = Known(7, resident=100 * MIB), Memory(huge=True)
    assert list(known.orders(memory, where(100))) == [HUGE]
    known.done(HUGE, after(where(100, huge=60)))
    assert list(known.orders(memory, where(100, huge=60))) == []
    assert list(known.orders(memory, where(107, huge=60))) == []
    assert list(known.orders(memory, where(112, huge=60))) == [HUGE]


def test_memory_goes_to_its_node_at_first_and_when_some_has_strayed() -> None:
    known, memory = Known(7), Memory(node=1)
    home = where(100, node1=100)
    assert list(known.orders(memory, home)) == [NODE]  # what comes later is to come from there
    known.done(NODE, after(home))
    assert list(known.orders(memory, home)) == []
    assert list(known.orders(memory, where(100, node0=7, node1=93))) == []
    strayed = where(100, node0=50, node1=50)
    assert list(known.orders(memory, strayed)) == [NODE]
    known.done(NODE, after(strayed))
    assert list(known.orders(memory, strayed)) == []
    assert list(known.orders(Memory(node=0), strayed)) == [Order(node=0)]


def test_without_a_wish_nothing_moves() -> None:
    assert list(Known(7, resident=100 * MIB).orders(Memory(), where(100, node0=100))) == []


def test_a_node_that_the_host_has_not_is_refused() -> None:
    spec = MachineSpec.model_validate({"name": "db", "memory": {"node": 77}})
    said = r"memory\.node: 77 is not possible .* this host has NUMA node 0"
    with pytest.raises(UnsupportedError, match=said):
        refuse(spec, "uml", ())


def test_a_node_is_new_memorys_at_once_and_is_let_go_before_that_is_on_record(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mems = tmp_path / "cpuset.mems"
    mems.write_text("7")
    reached: list[tuple[str, str]] = []

    def reach(step: str) -> None:
        if step.startswith("set:"):
            reached.append((step, mems.read_text()))

    async def refused(*_: object, **__: object) -> None:
        raise UnavailableError("the disk is full")

    async def scene(daemon: Daemon) -> None:
        shares = daemon.supervisor.shares
        await daemon.supervisor.create(MachineSpec.model_validate({"name": "db"}))
        await daemon.supervisor.start("db")
        monkeypatch.setattr(failpoint, "reach", reach)
        monkeypatch.setattr(topology, "nodes", lambda: [Node(0, (), 0, 0), Node(1, (), 0, 0)])
        await shares.set("db", [("memory.weight", 50)])
        await shares.set("db", [("memory.node", 1)])
        await shares.set("db", [("memory.node", None)])
        assert reached == [
            *[("set:recorded", "7"), ("set:applied", "7")],
            *[("set:recorded", "7"), ("set:applied", "1")],
            *[("set:recorded", "0-1"), ("set:applied", "0-1")],
        ]
        await shares.set("db", [("memory.node", 1)])
        monkeypatch.setattr(daemon.supervisor, "move", refused)
        with pytest.raises(UnavailableError, match="full"):
            await shares.set("db", [("memory.node", None)])
        assert mems.read_text() == "1"
        monkeypatch.undo()

    parts = replace(fake_parts(stage.paths), group=lambda _machine: Cgroup({"cpuset": tmp_path}))
    stage.play(scene, parts)
    stage.clear()


def test_what_cannot_be_moved_is_said_once(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(daemon: Daemon) -> None:
        home = MemoryHome(daemon.supervisor)
        await daemon.supervisor.create(MachineSpec.model_validate({"name": "db", "memory": {"huge": True}}))
        await daemon.supervisor.start("db")
        for _ in range(3):
            await home.look()
        notes: list[Any] = await daemon.supervisor.journal("db", 100)
        said = [note.detail for note in notes if note.event == "memory not relocated"]
        assert len(said) == caplog.text.count("its memory stays where it is") == 1
        assert "has no guest memory" in said[0]
        await daemon.supervisor.shares.set("db", [("memory.huge", False), ("memory.node", 0)])

    stage.play(scene)
    stage.clear()
