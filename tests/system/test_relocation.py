"""Memory of real guests moves while they run, by the host's counters, and they find all of it as it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.engine import Machine as EngineMachine
from nagaya.errors import NagayaError, UnsupportedError
from nagaya.paths import Paths
from nagaya.resources import relocation
from nagaya.resources.cgroups import Cgroup
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.kvm_yard import KvmYard
from nagaya.testing.processes import end
from nagaya.testing.swap import CONTROL, swap
from nagaya.testing.yard import wait_until

MIB = 2**20
FILL = "mount -t tmpfs -o size=90% none /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count=48 2>/dev/null"

pytestmark = [pytest.mark.uml, pytest.mark.root]


def digest(machine: Machine) -> bytes:
    done = machine.exec(["md5sum", "/mnt/f"])
    assert done.exit_code == 0, done
    return done.stdout


@pytest.fixture
def filled(client: Client) -> tuple[Machine, bytes]:
    """A machine with 48 MiB that it remembers, and their digest."""
    spec = {"name": "web", "memory": "96MiB", "disks": [{"image": "busybox"}]}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    done = machine.exec(["sh", "-c", FILL])
    assert done.exit_code == 0, done
    return machine, digest(machine)


def test_pages_become_huge_and_small_again(filled: tuple[Machine, bytes]) -> None:
    machine, before = filled
    answer = machine.relocate(huge=True)
    assert answer.after.huge >= 16 * MIB
    assert answer.done == answer.after.huge - answer.before.huge
    assert digest(machine) == before
    answer = machine.relocate(huge=False)
    assert answer.after.huge < 4 * MIB  # the guest runs on, and khugepaged does not
    assert digest(machine) == before


def test_by_policy_pages_become_huge_and_the_home_node_is_kept(
    filled: tuple[Machine, bytes],
) -> None:
    machine, before = filled
    machine.set({"memory.huge": True, "memory.node": 0})

    def moved() -> set[str]:
        notes = machine.journal()
        return {note.detail.partition(":")[0] for note in notes if note.event == "memory relocated"}

    asyncio.run(wait_until(lambda: moved() == {"huge", "node"}, 90))
    place = machine.relocate(resident=True).after
    assert place.huge >= 16 * MIB
    assert digest(machine) == before


def test_a_daemon_killed_in_the_middle_of_a_policys_look_leaves_the_rest_to_the_next(
    client: Client, filled: tuple[Machine, bytes], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, before = filled
    end(client.host().daemon_pid, signal.SIGTERM)
    monkeypatch.setenv("NAGAYA_FAILPOINT", "home:moved")
    first = ensure_daemon(paths)
    machine.set({"memory.node": 0, "memory.huge": True})
    end(first)
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    assert ensure_daemon(paths) != first

    def moved() -> list[str]:
        notes = machine.journal()
        return [note.detail.partition(":")[0] for note in notes if note.event == "memory relocated"]

    assert moved() == ["node"]  # and nothing of huge pages yet
    asyncio.run(wait_until(lambda: sorted(moved()) == ["huge", "node", "node"], 90))
    assert digest(machine) == before
    assert machine.refresh().info.restarts == 0


def test_pages_go_to_swap_and_come_back(filled: tuple[Machine, bytes]) -> None:
    if not CONTROL.exists():
        pytest.skip("needs zram in the host's kernel")
    machine, before = filled
    with swap(256 * MIB):
        answer = machine.relocate(swap=32 * MIB)
        assert answer.after.swapped >= 24 * MIB
        assert answer.after.resident <= answer.before.resident - 24 * MIB
        assert digest(machine) == before
        machine.relocate(swap=32 * MIB)
        answer = machine.relocate(resident=True)
        assert answer.done > 0
        assert answer.after.swapped < 4 * MIB
        assert digest(machine) == before
        machine.relocate(swap=16 * MIB)  # what is out when the swap goes away comes back with it
    assert digest(machine) == before
    assert "memory relocated" in [entry.event for entry in machine.journal()]


def test_a_daemon_killed_while_pages_move_leaves_the_guest_and_its_limit_as_they_were(
    filled: tuple[Machine, bytes], paths: Paths
) -> None:
    if not CONTROL.exists():
        pytest.skip("needs zram in the host's kernel")
    machine, before = filled
    limit = limit_of(machine, paths)
    usual = limit.read_text()
    orders: list[dict[str, Any]] = [{"swap": 32 * MIB}, {"resident": True}, {"huge": True}, {"node": 0}]
    with swap(256 * MIB):
        for number, order in enumerate(orders * 2):
            daemon = Client(paths).host().daemon_pid
            mover = threading.Thread(target=move_or_not, args=(machine, order))
            mover.start()
            time.sleep(0.005 * number)
            os.kill(daemon, signal.SIGKILL)
            mover.join()
            ensure_daemon(paths)
            assert digest(machine) == before
        asyncio.run(wait_until(lambda: limit.read_text() == usual, 60))
        machine.relocate(resident=True)
    assert machine.refresh().info.restarts == 0


def test_a_limit_that_a_killed_daemon_left_low_is_set_again(
    filled: tuple[Machine, bytes], paths: Paths
) -> None:
    machine, before = filled
    limit = limit_of(machine, paths)
    usual = limit.read_text()
    os.kill(Client(paths).host().daemon_pid, signal.SIGKILL)
    limit.write_text(str(int(usual) - 16 * MIB))  # as it is between two pieces that go to swap
    assert limit.read_text() != usual
    ensure_daemon(paths)
    asyncio.run(wait_until(lambda: limit.read_text() == usual, 60))
    assert digest(machine) == before


def limit_of(machine: Machine, paths: Paths) -> Path:
    """The file with the most that the machine's control group may have."""
    group = Cgroup.load(paths.machine(machine.id).run / "cgroups.json")
    assert group is not None
    memory = group.groups["memory"]
    v1 = memory / "memory.limit_in_bytes"
    return v1 if v1.exists() else memory / "memory.max"


def move_or_not(machine: Machine, order: dict[str, Any]) -> None:
    """An order that the daemon's end may cut short."""
    with contextlib.suppress(NagayaError):
        machine.relocate(**order)


def test_pages_stay_on_the_only_node_and_another_is_refused(filled: tuple[Machine, bytes]) -> None:
    machine, before = filled
    answer = machine.relocate(node=0)
    assert sum(answer.after.nodes.values()) >= 32 * MIB
    with pytest.raises(UnsupportedError, match="no NUMA node 999"):
        machine.relocate(node=999)
    assert digest(machine) == before


@pytest.mark.kvm
def test_memory_of_the_kvm_engine_moves_too(paths: Paths) -> None:
    """A guest reads 32 MiB every second or two; they go to swap, come back and go to a node."""

    async def scene(yard: KvmYard) -> None:
        machine = yard.machine("remember", memory="64MiB")
        process = await yard.start(machine)
        group = yard.engine.jails.group(machine.id)
        with swap(256 * MIB):
            out = 0
            deadline = time.monotonic() + 60
            while out < 4 * MIB:  # what the guest has just written is not cold yet
                assert time.monotonic() < deadline
                out += (await asyncio.to_thread(relocation.page_out, process.pid, 16 * MIB, group)).done
            await goes_on(machine)
            await asyncio.to_thread(relocation.page_out, process.pid, 8 * MIB, group)
            back = await asyncio.to_thread(relocation.bring_back, process.pid)
            assert back.after.swapped < MIB
        await goes_on(machine)  # what came back is mapped again where it was read
        moved = await asyncio.to_thread(relocation.move, process.pid, 0, group)
        assert sum(moved.after.nodes.values()) >= 32 * MIB
        await goes_on(machine)
        assert "FAILED" not in machine.paths.engine_log.read_text()

    async def whole() -> None:
        yard = KvmYard(paths)
        try:
            await scene(yard)
        finally:
            await yard.close()

    if not CONTROL.exists():
        pytest.skip("needs zram in the host's kernel")
    asyncio.run(whole())


async def goes_on(machine: EngineMachine) -> None:
    """Wait until its guest has read all of it again, from the beginning to the end."""
    before = machine.paths.engine_log.read_text().count("ROUND")
    await wait_until(lambda: machine.paths.engine_log.read_text().count("ROUND") >= before + 2, 60)
