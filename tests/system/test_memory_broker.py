"""The broker with a real guest: its idle memory comes to the host, and the next daemon goes on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya.models.memory import MachineMemoryInfo
from nagaya.paths import Paths
from nagaya.sdk import Client, ensure_daemon

MIB = 2**20
PATIENCE = 60  # seconds
# Reads a disk whose cache stays: somebody has it open.
CACHE = "sleep 1000 </dev/vdb >/dev/null 2>&1 & dd if=/dev/vdb of=/dev/null bs=64k"

pytestmark = pytest.mark.uml


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.1)


def test_idle_memory_comes_to_the_host_and_the_next_daemon_goes_on(
    client: Client, paths: Paths, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(128 * MIB))
    disks = [{"image": "busybox"}, {"path": str(disk)}]
    spec = {"name": "web", "memory": "256MiB", "disks": disks}
    machine = client.machines.create(spec, start=True).wait("agent", 60)

    def web() -> MachineMemoryInfo:
        return client.memory.show().machines[0]

    assert machine.exec(["sh", "-c", CACHE]).exit_code == 0
    held = web().resident
    assert held is not None
    assert held >= 128 * MIB  # read by the plane, but for the guest
    client.memory.set([("budget", held - 32 * MIB)])
    until(lambda: (web().resident or 0) <= held - 48 * MIB)
    moves = client.memory.moves()
    assert {(move.machine, move.kind) for move in moves} == {("web", "take")}
    assert "machines have all but" in moves[0].reason
    known = {move.at for move in moves}
    assert machine.why_memory().moves
    until(lambda: web().actual == web().balloon)
    size = web().balloon
    pid = client.host().daemon_pid
    os.kill(pid, signal.SIGKILL)
    ensure_daemon(paths)
    assert client.host().daemon_pid != pid
    assert abs(web().balloon - size) <= 32 * MIB  # nothing jumps
    assert client.memory.set([("budget", held - 32 * MIB)]).changes == []
    assert known & {move.at for move in client.memory.moves(600)}


def test_a_holder_killed_in_the_middle_of_a_move_loses_no_more_than_the_machine(
    client: Client, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(128 * MIB))
    disks = [{"image": "busybox"}, {"path": str(disk)}]
    memory = {"size": "256MiB", "reservation": "128MiB"}
    machine = client.machines.create({"name": "web", "memory": memory, "disks": disks}, start=True)
    for _ in range(2):
        machine.wait("agent", 60)
        assert machine.exec(["sh", "-c", CACHE]).exit_code == 0
        client.memory.set([("budget", "32MiB")])
        until(lambda: machine.memory().balloon)  # asked for, and not all given yet
        holder = client.host().plane_pid
        assert holder is not None
        os.kill(holder, signal.SIGKILL)
        machine.wait("stopped", PATIENCE)
        assert client.memory.show().machines == []
        moves = [move.at for move in client.memory.moves(600)]
        assert moves
        client.memory.set([("budget", "none")])
        machine.start().wait("agent", PATIENCE)
        assert machine.memory().balloon == 0
        assert moves == [move.at for move in client.memory.moves(600)]
    client.memory.set([("budget", "32MiB")])
    until(lambda: machine.memory().actual >= 112 * MIB)
    for _ in range(20):
        one = machine.memory()
        assert one.size - one.balloon >= 128 * MIB, "the floor is broken"
        time.sleep(0.1)
    assert machine.exec(["sh", "-c", CACHE]).exit_code == 0


def test_a_limit_and_a_smaller_size_hold_for_what_the_plane_reads_too(client: Client, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(192 * MIB))
    disks = [{"image": "busybox"}, {"path": str(disk)}]
    memory = {"size": "256MiB", "limit": "160MiB"}
    machine = client.machines.create({"name": "web", "memory": memory, "disks": disks}, start=True)
    machine.wait("agent", 60)
    until(lambda: machine.memory().actual >= 96 * MIB)
    assert machine.exec(["sh", "-c", CACHE]).exit_code == 0
    web = machine.memory()
    assert web.guest is not None and web.by_plane is not None and web.resident is not None
    assert web.by_plane >= 32 * MIB
    assert web.guest <= 160 * MIB
    used = client.usage().machines[0].memory
    assert used is not None and used >= web.guest

    machine.set([("memory.limit", "none")])
    until(lambda: machine.memory().actual == 0)
    assert machine.exec(["sh", "-c", CACHE]).exit_code == 0
    assert (machine.memory().guest or 0) >= 192 * MIB
    machine.set([("memory.size", "128MiB")])
    until(lambda: (machine.memory().guest or 0) <= 128 * MIB)
    machine.set([("memory.size", "256MiB")])
    until(lambda: machine.memory().actual == 0)
