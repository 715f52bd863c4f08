"""How fast the host has a guest's memory back: what it frees by itself, and what the balloon is told to take.

A BusyBox guest on User-mode Linux fills 400 MiB of a file system in memory. `freed`: it is unmounted, and the
clock runs until the host, by its own counters, holds 380 MiB less. `taken`: the balloon is set to 256 MiB,
the guest having 400 MiB of free pages that it once used, and the clock runs until the host has 250 MiB back.
The promises are bounds: 5 s and 1 s.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.errors import TimeoutExpiredError, UnavailableError
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, Machine
from nagaya.testing.guestmemory import held_bytes

MIB = 2**20
FILLED, FREED = 400, 380  # MiB
TAKEN, SEEN = 256, 250
LONGEST = 60.0  # seconds
BOUND = "the bound"
FILL = f"mount -t tmpfs -o size=90% none /mnt && dd if=/dev/zero of=/mnt/f bs=1M count={FILLED} 2>/dev/null"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, rounds=(7, 2))
    with own_nagaya() as client:
        freed, taken = asyncio.run(_measure(client, options.rounds))
    rows = [
        Row("a guest frees 400 MiB: 380 are back", freed, _bound(5.0, freed), "s", "lower", {BOUND: 1.0}),
        Row("the balloon takes 256 MiB", taken, _bound(1.0, taken), "s", "lower", {BOUND: 1.0}),
    ]
    return report("Memory that comes back", rows, options)


async def _measure(client: Client, rounds: int) -> tuple[list[float], list[float]]:
    client.memory.set({"broker": False})
    spec = {"name": "memory", "memory": "640MiB", "disks": [{"image": "busybox"}]}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    freed, taken = [], []
    async with await PlaneClient.connect(client.paths.plane_socket) as plane:
        for _ in range(rounds):
            _run(machine, FILL)
            before = _held(machine)
            _run(machine, "umount /mnt")
            freed.append(await _wait(machine, before - FREED * MIB, time.monotonic()))
            # Free pages that the host still holds: those of before are reported within seconds.
            _run(machine, FILL)
            _run(machine, "umount /mnt")
            before = _held(machine)
            begun = time.monotonic()
            await plane.set_balloon(f"{machine.id}/balloon0", TAKEN * MIB)
            taken.append(await _wait(machine, before - SEEN * MIB, begun))
            await plane.set_balloon(f"{machine.id}/balloon0", 0)
            while (await plane.query_balloons())[0].actual:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    return freed, taken


def _bound(seconds: float, samples: Sequence[float]) -> dict[str, Sequence[float]]:
    return {BOUND: [seconds] * len(samples)}


async def _wait(machine: Machine, at_most: int, begun: float) -> float:
    """Seconds since `begun` until the host holds `at_most` bytes; it looks every 10 ms."""
    while _held(machine) > at_most:
        if time.monotonic() - begun > LONGEST:
            have = _held(machine)
            raise TimeoutExpiredError(f"the host holds {have} bytes after {LONGEST:g} s, not {at_most}")
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


def _held(machine: Machine) -> int:
    pid = machine.info.pid or machine.refresh().info.pid
    return held_bytes(pid or 0)


def _run(machine: Machine, command: str) -> None:
    done = machine.exec(["sh", "-c", command])
    if done.exit_code:
        raise UnavailableError(f"{command}: {done}")


if __name__ == "__main__":
    main(sys.argv[1:])
