"""Two machines of 1 GiB on a budget of 1.2 GiB, of which one works while the other rests, in turns.

Work is reading a file of two thirds of the memory again and again (dd of a disk): it goes at the memory's
speed as long as the file stays in the guest's cache, and a guest that rests keeps its cache. Beside ours,
which a control group holds to the budget: 2 GiB and no bound; halves, fixed; and the kernel's swap alone, on
zram, under the same control group. The time is that of all turns together.

How fast memory moves is measured by itself: 256 MiB of caches from one machine to the other.

Root only. It switches swap on for a while, and restores what was there.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.errors import NagayaError
from nagaya.plane.client import PlaneClient
from nagaya.resources.cgroups import Cgroup, find_base, remove_base
from nagaya.sdk import Client, Machine

MIB = 2**20
BUDGET = 1228 * MIB
FILE = 640 * MIB
TARGET = 1.15  # of the time with 2 GiB
MOVED = 256 * MIB


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, turns=(4, 3), passes=(18, 6), rounds=(3, 1))
    turns, passes = int(options.turns), int(options.passes)
    kinds: dict[str, Callable[[], float]] = {
        "ours": lambda: _all_turns(turns, passes, budget=True),
        "2 GiB": lambda: _all_turns(turns, passes),
        "halves": lambda: _all_turns(turns, passes, memory=BUDGET // 2),
        "kernel's swap": lambda: _swapping(lambda: _all_turns(turns, passes, bound=True)),
    }
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    moving = []
    for _ in range(int(options.rounds)):
        for kind, measure in kinds.items():
            samples[kind].append(measure())
            print(f"{kind}: {samples[kind][-1]:.2f} s", file=sys.stderr, flush=True)
        moving.append(_move())
    peers = {kind: samples[kind] for kind in kinds if kind != "ours"}
    title = "Memory of two machines in turns: time to finish"
    rows = [
        Row(f"{turns} turns", samples["ours"], peers, "s", "lower", {"2 GiB": TARGET}),
        Row("256 MiB move", moving, {"the bound": [1.0] * len(moving)}, "s", "lower", {"the bound": 1.0}),
    ]
    return report(title, rows, options)


def _all_turns(
    turns: int, passes: int, *, budget: bool = False, bound: bool = False, memory: int = 1024 * MIB
) -> float:
    """Seconds until both have done all their turns, one at a time."""
    with _group() as group, own_nagaya() as client:
        client.memory.set([("broker", budget), ("budget", BUDGET if budget else "none")])
        if budget or bound:
            _hold_to(group, (group.memory_bytes() or 0) + BUDGET)
        pair = [_start(client, name, memory) for name in ("one", "two")]
        for machine in pair:
            _work(machine, 1)
        began = time.monotonic()
        for turn in range(turns):
            _work(pair[turn % 2], passes)
        return time.monotonic() - began


def _move() -> float:
    """Seconds in which 256 MiB go from one machine, whose caches they were, to the other."""
    with own_nagaya() as client:
        client.memory.set([("broker", False)])
        pair = [_start(client, name, 1024 * MIB) for name in ("one", "two")]
        for machine in pair:
            _work(machine, 1)
        return asyncio.run(_pass_on(client, *(f"{machine.id}/balloon0" for machine in pair)))


async def _pass_on(client: Client, giver: str, taker: str) -> float:
    async with await PlaneClient.connect(client.paths.plane_socket) as plane:

        async def until(device: str, actual: int) -> None:
            found: list[int] = []
            while actual not in found:
                await asyncio.sleep(0.002)
                found = [one.actual for one in await plane.query_balloons() if one.id == device]

        await plane.set_balloon(taker, MOVED)
        await until(taker, MOVED)
        began = time.monotonic()
        await plane.set_balloon(giver, MOVED)
        await until(giver, MOVED)
        await plane.set_balloon(taker, 0)
        await until(taker, 0)
        return time.monotonic() - began


def _start(client: Client, name: str, memory: int) -> Machine:
    """A machine with its file as second disk, whose agent answers."""
    file = client.paths.state / f"{name}.raw"
    with file.open("wb") as out:
        for _ in range(FILE // MIB):
            out.write(os.urandom(MIB))
    disks = [{"image": "busybox"}, {"path": str(file)}]
    spec = {"name": name, "memory": memory, "disks": disks}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    machine.exec(["sh", "-c", "sleep 100000 </dev/vdb >/dev/null 2>&1 &"])  # open, or its cache is dropped
    return machine


def _work(machine: Machine, passes: int) -> None:
    command = f"for i in $(seq {passes}); do dd if=/dev/vdb of=/dev/null bs=64k; done"
    done = machine.exec(["sh", "-c", command], timeout=600)
    if done.exit_code:
        raise NagayaError(f"{machine}: {done}")


@contextmanager
def _group() -> Iterator[Cgroup]:
    """A control group in which this process is, and with it all that it starts."""
    base = find_base(f"bench-{os.getpid()}")
    if "memory" not in base.groups:
        raise NagayaError(f"this host has no memory controller: {base.missing.get('memory')}")
    group = Cgroup({"memory": base.groups["memory"]})
    (group.groups["memory"] / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield group
    finally:
        (group.groups["memory"].parent / "cgroup.procs").write_text(str(os.getpid()))
        _hold_to(group, -1)
        remove_base(base)


def _hold_to(group: Cgroup, size: int) -> None:
    """All in the group together get no more of the host's memory than this; -1: what they want."""
    for name, nothing in (("memory.limit_in_bytes", "-1"), ("memory.max", "max")):
        file = group.groups["memory"] / name
        if file.exists():
            file.write_text(nothing if size < 0 else str(size))


def _swapping(measure: Callable[[], float]) -> float:
    with _zram(2048 * MIB):
        return measure()


@contextmanager
def _zram(size: int) -> Iterator[None]:
    found = subprocess.run(
        ["zramctl", "--find", "--size", str(size)], check=True, capture_output=True, text=True
    )
    device = found.stdout.strip()
    try:
        subprocess.run(["mkswap", device], check=True, capture_output=True)
        subprocess.run(["swapon", device], check=True)
        yield
    finally:
        subprocess.run(["swapoff", device], check=False)
        subprocess.run(["zramctl", "--reset", device], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
