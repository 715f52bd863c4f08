"""A frontend that comes, goes and breaks rules in a loop: the plane's log stays small, the plane answers."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import RngDevice
from nagaya.plane.launch import ensure_holder
from nagaya.testing.scratch import make_directory

LOOPS = 400
# VHOST_USER_SET_VRING_NUM: queue 0 has three descriptors, which no queue may have.
BROKEN = struct.pack("=III II", 8, 1, 8, 0, 3)
QUOTA = 200  # lines that `nagaya.plane.log` lets pass in each ten seconds


@pytest.fixture
def house() -> Iterator[Paths]:
    top = make_directory()
    yield Paths(top / "r", top / "s", top / "c")
    shutil.rmtree(top)


def _attack(path: str) -> None:
    for _ in range(LOOPS):
        with socket.socket(socket.AF_UNIX) as frontend:
            frontend.connect(path)
            frontend.sendall(BROKEN * 100)


async def _scene(paths: Paths) -> int:
    """Attack for a while; how many violations were counted."""
    await ensure_holder(paths)
    device = RngDevice("m/rng", str(paths.run / "rng"), os.getuid(), os.getgid())
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        await plane.device_add(device)
        attack = asyncio.create_task(asyncio.to_thread(_attack, device.socket))
        answered = 0
        while not attack.done():
            await plane.pid()
            answered += 1
            await asyncio.sleep(0.01)
        await attack
        assert answered > 10
        [status] = await plane.query_devices()
        await plane.quit()
        await plane.wait_closed()
    return sum(status.violations.values())


def test_a_frontend_does_not_flood_the_log(house: Paths) -> None:
    began = time.monotonic()
    counted = asyncio.run(_scene(house))
    windows = 1 + int((time.monotonic() - began) / 10)
    log = (house.state / "plane.log").read_text().splitlines()
    assert counted > LOOPS
    assert len(log) <= (windows + 1) * QUOTA, "\n".join(log[-5:])
