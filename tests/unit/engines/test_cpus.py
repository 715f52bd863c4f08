"""Where machines run, and the weights of their groups: on a host of two nodes made of plain files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.cpus import Cpus
from nagaya.engines.engine import Machine
from nagaya.errors import ResourceError, UnsupportedError
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.topology import Node
from nagaya.spec import MachineSpec

GIB = 2**30
NODES = [Node(0, (0, 1), 4 * GIB, 2 * GIB), Node(1, (2, 3), 4 * GIB, 2 * GIB)]


class Host:
    """Control groups of v2 in a directory, and CPUs."""

    def __init__(self, top: Path, nodes: list[Node] = NODES) -> None:
        self.top = top
        (top / "cpu.weight").write_text("100")
        self.cpus = Cpus(frozenset(cpu for node in nodes for cpu in node.cpus), lambda: nodes)

    def machine(self, name: str, **parts: Any) -> Machine:
        spec = MachineSpec.model_validate({"name": name, "memory": "512MiB", **parts})
        paths = Paths(self.top, self.top, self.top).machine(name)
        return Machine(name, spec, paths, 1, 1, Kernel("", ""))

    def group(self, machine: Machine) -> Cgroup:
        directory = self.top / machine.id
        directory.mkdir(exist_ok=True)
        for name in ("cpu.weight", "cpuset.cpus"):
            (directory / name).touch()
        return Cgroup(dict.fromkeys(("cpu", "cpuset"), directory))

    def start(self, name: str, *, single: bool = True, **parts: Any) -> Machine:
        machine = self.machine(name, **parts)
        cpus = self.cpus.one(machine) if single else self.cpus.several(machine)
        self.cpus.hold(machine, self.group(machine), cpus)
        return machine

    def weight(self, name: str = "") -> int:
        return int((self.top / name / "cpu.weight").read_text())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def where(host: Host, machine: Machine) -> frozenset[int]:
    return host.cpus.found(machine, 0)


def test_weights_are_worked_out_anew_when_machines_come_and_go(tmp_path: Path) -> None:
    host = Host(tmp_path, [Node(0, (0,), GIB, GIB)])
    host.start("db", cpu={"reservation": 0.5, "weight": 100})
    assert host.weight("db") == 100
    host.start("a", cpu={"weight": 100})
    host.start("b", cpu={"weight": 300})
    assert (host.weight("db"), host.weight("a"), host.weight("b")) == (400, 100, 300)
    assert host.weight() == 400  # of the group of all machines: 0.5 of 1 beside 4 busy groups of the host's
    host.cpus.release("b")
    assert host.weight("db") == 100
    host.cpus.hold(host.machine("db"), host.group(host.machine("db")), frozenset({0}))
    assert (host.weight("db"), host.weight()) == (100, 100)


def test_machines_on_other_cpus_do_not_count_until_they_move(host: Host) -> None:
    db = host.start("db", cpu={"reservation": 0.6})
    heavy = host.start("heavy", cpu={"weight": 900})
    assert not where(host, db) & where(host, heavy)
    assert host.weight("db") == 100
    asyncio.run(host.cpus.move("heavy", where(host, db)))
    assert host.weight("db") == 1350
    assert (host.top / "heavy/cpuset.cpus").read_text() == "0"


def test_one_cpu_never_promises_more_than_it_has(host: Host) -> None:
    for name in ("a", "b", "c", "d"):
        host.start(name, cpu={"reservation": 0.6})
    with pytest.raises(ResourceError, match=r"e cannot have one CPU: it reserves 0\.6, .* 0\.35 of CPU 0"):
        host.start("e", cpu={"reservation": 0.6})
    host.start("e", cpu={"reservation": 0.3})
    host.start("f")


def test_a_pinned_machine_is_where_it_was_told_to_be(host: Host) -> None:
    assert where(host, host.start("a", cpu={"pin": 3})) == {3}
    assert where(host, host.start("wide", single=False, cpus=2, cpu={"pin": "1-2"})) == {1, 2}
    host.cpus.check(host.machine("ok", cpu={"pin": "0-3"}).spec)
    with pytest.raises(UnsupportedError, match="machines may run on CPUs 0-3 of this host, not on 4-5"):
        host.cpus.check(host.machine("bad", cpu={"pin": "3-5"}).spec)
    with pytest.raises(ResourceError, match="promised and 0 are"):
        host.start("much", single=False, cpus=2, cpu={"pin": "3", "reservation": 1})


def test_a_machine_whose_pin_is_changed_moves_and_one_that_loses_it_is_free(host: Host) -> None:
    wide = host.start("wide", single=False, cpus=2, cpu={"pin": "1-2"})
    freed = host.machine("wide", cpus=2)
    cpus = host.cpus.several(freed)
    assert cpus == {0, 1}
    host.cpus.hold(freed, host.group(wide), cpus)
    assert host.cpus.several(host.machine("wide", cpus=2, cpu={"weight": 7})) == cpus


def test_a_machine_with_several_cpus_gets_those_of_the_node_with_the_fewest(host: Host) -> None:
    first = host.start("first", single=False, cpus=2)
    second = host.start("second", single=False, cpus=2)
    assert {where(host, first), where(host, second)} == {frozenset({0, 1}), frozenset({2, 3})}
    assert where(host, host.start("wide", single=False, cpus=4)) == {0, 1, 2, 3}
    assert where(host, host.start("large", single=False, cpus=2, memory="3GiB")) == {0, 1, 2, 3}
