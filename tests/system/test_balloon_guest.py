"""The balloon of a real guest: its memory comes to the host, by the host's own counters, and back to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from nagaya.paths import Paths
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, Machine
from nagaya.testing.guestmemory import held_bytes
from nagaya.testing.workers import worker_pids

MIB = 2**20
PATIENCE = 60  # seconds; how fast it is says benches/memory
# Fills a file system in memory, and empties it again.
FILL = "mount -t tmpfs -o size=90% none /mnt && dd if=/dev/zero of=/mnt/f bs=1M count={} 2>/dev/null"
EMPTY = "umount /mnt"
# The same by four programs at once, who take from one another what the balloon gives back.
CROWD = (
    "mount -t tmpfs -o size=90% none /mnt && "
    "for i in 1 2 3 4; do dd if=/dev/zero of=/mnt/$i bs=1M count={} 2>/dev/null & done; "
    "wait; [ $(cat /mnt/* | wc -c) = $((4 * {} << 20)) ]"
)

pytestmark = pytest.mark.uml


def guest(client: Client, memory: str) -> Machine:
    """A machine whose balloon is the test's alone."""
    client.memory.set({"broker": False})
    spec = {"name": "web", "memory": memory, "disks": [{"image": "busybox"}]}
    return client.machines.create(spec, start=True).wait("agent", 60)


def run(machine: Machine, command: str) -> None:
    done = machine.exec(["sh", "-c", command])
    assert done.exit_code == 0, done


@contextlib.asynccontextmanager
async def plane_of(paths: Paths) -> AsyncIterator[PlaneClient]:
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        yield plane


async def balloon(plane: PlaneClient, machine: Machine) -> BalloonStatus:
    return next(one for one in await plane.query_balloons() if one.id == f"{machine.id}/balloon0")


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + PATIENCE
    while not await true():
        assert time.monotonic() < end, "it does not come to pass"
        await asyncio.sleep(0.02)


def test_what_the_balloon_takes_the_host_has_and_gives_back(client: Client, paths: Paths) -> None:
    machine = guest(client, "256MiB")
    pid = machine.refresh().info.pid
    assert pid is not None
    run(machine, FILL.format(160))
    run(machine, EMPTY)

    async def scene() -> None:
        async with plane_of(paths) as plane:
            device = f"{machine.id}/balloon0"
            one = await balloon(plane, machine)
            assert (one.size, one.actual, one.driver, one.taken_back) == (0, 0, True, 0)

            async def is_filled() -> bool:
                return (await balloon(plane, machine)).actual == 128 * MIB

            await plane.set_balloon(device, 128 * MIB)
            await until(is_filled)
            filled = await balloon(plane, machine)
            assert filled.inflated >= 128 * MIB
            assert held_bytes(pid) <= 130 * MIB  # 256, less the balloon, and the kernel's tables
            os.kill((await worker_pids(plane))["balloons"], signal.SIGKILL)
            assert (await balloon(plane, machine)).actual == 128 * MIB
            await plane.set_balloon(device, 0)

            async def is_empty() -> bool:
                return (await balloon(plane, machine)).actual == 0

            await until(is_empty)
            assert (await balloon(plane, machine)).deflated >= 128 * MIB

    asyncio.run(scene())
    run(machine, FILL.format(160))  # it has its memory again
    assert held_bytes(pid) >= 160 * MIB


def test_what_a_guest_frees_the_host_has_without_asking(client: Client, paths: Paths) -> None:
    machine = guest(client, "256MiB")
    pid = machine.refresh().info.pid
    assert pid is not None
    run(machine, FILL.format(128))
    full = held_bytes(pid)
    assert full >= 128 * MIB
    run(machine, EMPTY)

    async def scene() -> None:
        async with plane_of(paths) as plane:

            async def is_back() -> bool:
                return held_bytes(pid) <= full - 120 * MIB

            await until(is_back)
            assert (await balloon(plane, machine)).reported >= 120 * MIB

    asyncio.run(scene())


def test_a_guest_tells_of_its_memory_as_often_as_it_is_asked(client: Client, paths: Paths) -> None:
    machine = guest(client, "256MiB")

    async def scene() -> None:
        async with plane_of(paths) as plane:
            await plane.set_balloon(f"{machine.id}/balloon0", stats_ms=100)
            seen: set[int | None] = set()

            async def has_told() -> bool:
                seen.add((await balloon(plane, machine)).stats_at)
                return len(seen - {None}) >= 4

            await until(has_told)
            os.kill((await worker_pids(plane))["balloons"], signal.SIGKILL)
            seen.clear()
            await until(has_told)
            stats = (await balloon(plane, machine)).stats
            assert stats is not None
            assert stats.total is not None
            assert stats.free is not None
            assert 200 * MIB < stats.total <= 256 * MIB
            assert 0 < stats.free < stats.total

    asyncio.run(scene())


def test_a_guest_without_room_takes_its_memory_back_and_lives(client: Client, paths: Paths) -> None:
    machine = guest(client, "128MiB")

    async def scene() -> None:
        async with plane_of(paths) as plane:
            await plane.set_balloon(f"{machine.id}/balloon0", 80 * MIB)

            async def is_filled() -> bool:
                return (await balloon(plane, machine)).actual == 80 * MIB

            await until(is_filled)
            await asyncio.to_thread(run, machine, CROWD.format(16, 16))
            assert (await balloon(plane, machine)).taken_back > 0

    asyncio.run(scene())
