"""Two machines of 1 GiB on a budget of 1.2 GiB, of which one works while the other rests, in turns.

Work is reading a file of two thirds of the memory again and again (dd of a disk): it goes at the memory's
speed as long as the file stays in the guest's cache, and a guest that rests keeps its cache. Beside ours,
which a control group holds to the budget: 2 GiB and no bound; halves, fixed; and the kernel's swap alone
under the same control group, on zram, and in a file on the disk of the temporary directory.

The time is that of a turn, the spread that over turns. So that slow peers end, none begins a turn after the
time in which 2 GiB did all of theirs, and a turn of more than four times one of 2 GiB's is cut: the name of
its column ends in `at least`.

How fast memory moves is measured by itself: 256 MiB from one machine to the other.

Root only, on a host without swap: it switches swap on for a while, and off again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.errors import ConflictError, NagayaError, TimeoutExpiredError
from nagaya.plane.client import PlaneClient
from nagaya.resources.cgroups import Cgroup, find_base, remove_base
from nagaya.sdk import Client, Machine
from nagaya.testing.swap import swap, swap_file

MIB = 2**20
BUDGET = 1228 * MIB
FILE = 640 * MIB
SWAP = 2048 * MIB
SWAPS = Path("/proc/swaps")
BEST = "2 GiB"
TARGET = 1.15  # of its time
PATIENCE = 4  # times its time
LONGEST = 600.0  # s that any turn may take
MOVED = 256 * MIB


@contextmanager
def _swap_on_disk() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ngb") as folder, swap_file(SWAP, Path(folder) / "swap"):
        yield


@dataclass(frozen=True, slots=True)
class House:
    """What the machines have: `bound` holds both together to the budget, `broker` moves it between them."""

    memory: int = 1024 * MIB
    bound: bool = False
    broker: bool = False
    swap: Callable[[], AbstractContextManager[Any]] = nullcontext


HOUSES = {
    BEST: House(),
    "ours": House(bound=True, broker=True),
    "halves": House(BUDGET // 2),
    "swap on zram": House(bound=True, swap=lambda: swap(SWAP)),
    "swap on a disk": House(bound=True, swap=_swap_on_disk),
}


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, turns=(4, 3), passes=(100, 6), moves=(3, 1))
    if len(SWAPS.read_text().splitlines()) > 1:
        raise ConflictError(f"this host has swap, see {SWAPS}", hint="swapoff -a, for the time of the bench")
    samples: dict[str, list[float]] = {}
    longest, span = LONGEST, inf
    for kind, house in HOUSES.items():
        took = _turns(house, int(options.turns), int(options.passes), longest, span)
        print(kind, *(f"{one:.2f} s" for one in took), file=sys.stderr, flush=True)
        samples[f"{kind}, at least" if took[-1] >= longest else kind] = took
        if kind == BEST:
            longest, span = PATIENCE * median(took), sum(took)
    moving = [_move() for _ in range(int(options.moves))]
    ours = samples.pop("ours")
    title = "Memory of two machines in turns: time of a turn"
    rows = [
        Row(f"{options.passes} readings", ours, samples, "s", "lower", {BEST: TARGET}),
        Row("256 MiB move", moving, {"the bound": [1.0] * len(moving)}, "s", "lower", {"the bound": 1.0}),
    ]
    return report(title, rows, options)


def _turns(house: House, turns: int, passes: int, longest: float, span: float) -> list[float]:
    """Seconds of each turn. None begins after `span` seconds in all; one that takes `longest` is cut."""
    took: list[float] = []
    with house.swap(), _group() as group, own_nagaya() as client:
        client.memory.set([("broker", house.broker), ("budget", BUDGET if house.broker else "none")])
        if house.bound:
            _hold_to(group, (group.memory_bytes() or 0) + BUDGET)
        pair = [_start(client, name, house.memory) for name in ("one", "two")]
        for machine in pair:
            _work(machine, 1)
        while len(took) < turns and sum(took) < span:
            began = time.monotonic()
            try:
                _work(pair[len(took) % 2], passes, longest)
            except TimeoutExpiredError:
                return [*took, time.monotonic() - began]
            took.append(time.monotonic() - began)
    return took


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


def _work(machine: Machine, passes: int, longest: float = LONGEST) -> None:
    command = f"for i in $(seq {passes}); do dd if=/dev/vdb of=/dev/null bs=64k; done"
    done = machine.exec(["sh", "-c", command], timeout=longest)
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


if __name__ == "__main__":
    main(sys.argv[1:])
