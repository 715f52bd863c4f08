"""Memory that a guest plugs and unplugs by virtio-mem, with a payload as its driver."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.hw import layout
from nagaya.kvm.config import DeviceConfig
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

MIB = layout.MIB
RAM, HOT, BLOCK = 16 * MIB, 64 * MIB, 2 * MIB

pytestmark = pytest.mark.kvm

Plug = Callable[..., Bare]


@pytest.fixture
def guest(plane: _core.Plane, directory: Path) -> Plug:
    """Makes a machine of 16 MiB that may plug 64, and is asked for 8."""

    def make(options: str = "") -> Bare:
        path = directory / "mem0.sock"
        config = {
            "driver": "mem",
            "id": "mem0",
            "worker": "balloons",
            "start": layout.hot_start(RAM),
            "size": HOT,
            "requested": 8 * MIB,
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            plane.device_add(json.dumps(config), [listener.fileno()])
        mem = DeviceConfig("mem0", "mem", str(path))
        return Bare(build("mem"), options, devices=[mem], memory=RAM, hot_memory=HOT)

    return make


def request(plane: _core.Plane, guest: Bare, size: int) -> None:
    """Ask the guest to have `size` MiB, and be its main loop until it has heard of that."""
    plane.set_memory("mem0", size * MIB)
    device = guest.machine.devices["mem0"]
    assert select.select([device.backend.fd], [], [], 60)[0], "the frontend is not told"
    guest.machine.attend(device)


def touched(guest: Bare) -> int:
    """Bytes of the region that the host has given."""
    memory = guest.machine.memory
    region = memory.regions[-1]
    found, at = 0, region.offset
    while at < region.offset + region.size:
        try:
            begin = os.lseek(memory.fd, at, os.SEEK_DATA)
        except OSError:  # nothing behind it
            break
        at = os.lseek(memory.fd, begin, os.SEEK_HOLE)
        found += at - begin
    return found


def plugged(plane: _core.Plane) -> int:
    (row,) = json.loads(plane.query_memory())
    return int(row["plugged"])


def test_memory_comes_and_goes_and_the_host_has_it_back(plane: _core.Plane, guest: Plug) -> None:
    with guest("greedy=1") as machine:
        machine.said("PLUGGED 8\n")
        for size in (64, 10, 32, 2):
            request(plane, machine, size)
            machine.said(f"PLUGGED {size}\n")
            assert (plugged(plane), touched(machine)) == (size * MIB, size * MIB)
        request(plane, machine, 0)
        assert "EXIT 0" in machine.finish()
        assert (plugged(plane), touched(machine)) == (0, 0)


def test_what_was_touched_unplugged_goes_with_everything(plane: _core.Plane, guest: Plug) -> None:
    with guest("grab=3") as machine:
        machine.said("PLUGGED 8\n")
        assert touched(machine) == 8 * MIB, "of 6 MiB that were grabbed, none is left but what is plugged"
        request(plane, machine, 0)
        machine.finish()


def test_a_killed_worker_forgets_nothing(plane: _core.Plane, guest: Plug) -> None:
    with guest() as machine:
        machine.said("PLUGGED 8\n")
        for size in (60, 4, 30):
            request(plane, machine, size)
            (worker,) = json.loads(plane.query())["workers"]
            if worker["pid"]:
                os.kill(worker["pid"], signal.SIGKILL)
            machine.said(f"PLUGGED {size}\n")
            assert plugged(plane) == size * MIB
        request(plane, machine, 0)
        assert "EXIT 0" in machine.finish()
