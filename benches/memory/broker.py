"""Two machines of 1 GiB on a budget of 1.2 GiB, of which one works while the other rests, in turns.

Work is reading a file of two thirds of the memory again and again (dd of a disk): it goes at the memory's
speed as long as the file stays in the guest's cache, and a guest that rests keeps its cache. Beside ours,
which a control group holds to the budget: 2 GiB and no bound; halves, fixed; and the kernel's swap alone
under the same control group, on zram, and in a file on the disk of the temporary directory.

The budget is the host's memory, so what zram's own store takes of it is counted: the kernel charges it to
nobody, and the group has that much less, followed ten times a second. The files' content is such that zram
stores it in 0.6 of its size, as it does pages of /usr/lib, /usr/bin and /usr/share (0.60, 0.62, 0.64).

A turn is as many readings as 2 GiB does in `--seconds`. The time is that of a turn, the spread that over
turns. So that slow peers end, none begins a turn after the time in which 2 GiB did all of theirs, and a turn
of more than four times one of 2 GiB's is cut: the name of its column ends in `at least`.

How fast memory moves is measured by itself: 256 MiB from one machine to the other.

Root only, on a host without swap: it switches swap on for a while, and off again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
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
FOLLOW_S = 0.1  # between two looks at what zram has taken
PAGE = 4096
RANDOM = 2448  # bytes of each page; the others are zeroes
TRIAL = 10  # readings by which the number of a turn is found


@contextmanager
def _swap_on_disk() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ngb") as folder, swap_file(SWAP, Path(folder) / "swap"):
        yield


@contextmanager
def _swap_on_zram() -> Iterator[Path]:
    """What its store takes is in the file."""
    with swap(SWAP) as device:
        yield Path("/sys/block") / Path(device).name / "mm_stat"


@dataclass(frozen=True, slots=True)
class House:
    """What the machines have: `bound` holds both together to the budget, `broker` moves it between them."""

    memory: int = 1024 * MIB
    bound: bool = False
    broker: bool = False
    swap: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, slots=True)
class Pace:
    """`turns` of `readings`; None begins after `span` seconds in all, and one that takes `longest` is cut."""

    turns: int
    readings: int = 0
    longest: float = LONGEST
    span: float = inf


HOUSES = {
    BEST: House(),
    "ours": House(bound=True, broker=True),
    "halves": House(BUDGET // 2),
    "swap on zram": House(bound=True, swap=_swap_on_zram),
    "swap on a disk": House(bound=True, swap=_swap_on_disk),
}


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, turns=(3, 3), seconds=(30.0, 3.0), moves=(3, 1))
    if len(SWAPS.read_text().splitlines()) > 1:
        raise ConflictError(f"this host has swap, see {SWAPS}", hint="swapoff -a, for the time of the bench")
    samples: dict[str, list[float]] = {}
    pace = Pace(int(options.turns))
    for kind, house in HOUSES.items():
        with _standing(house) as pair:
            if not pace.readings:
                pace = replace(pace, readings=_readings(pair[0], options.seconds))
            took = _turns(pair, pace)
        print(kind, *(f"{one:.2f} s" for one in took), file=sys.stderr, flush=True)
        samples[f"{kind}, at least" if took[-1] >= pace.longest else kind] = took
        if kind == BEST:
            pace = replace(pace, longest=PATIENCE * median(took), span=sum(took))
    moving = [_move() for _ in range(int(options.moves))]
    ours = samples.pop("ours")
    title = "Memory of two machines in turns: time of a turn"
    rows = [
        Row(f"{pace.readings} readings", ours, samples, "s", "lower", {BEST: TARGET}),
        Row("256 MiB move", moving, {"the bound": [1.0] * len(moving)}, "s", "lower", {"the bound": 1.0}),
    ]
    return report(title, rows, options)


@contextmanager
def _standing(house: House) -> Iterator[tuple[Machine, Machine]]:
    """Both machines, which have read their files."""
    with house.swap() as store, _group() as group, own_nagaya() as client:
        client.memory.set([("broker", house.broker), ("budget", BUDGET if house.broker else "none")])
        limit = (group.memory_bytes() or 0) + BUDGET if house.bound else -1
        with _held_to(group, limit, store):
            one, two = (_start(client, name, house.memory) for name in ("one", "two"))
            for machine in (one, two):
                _work(machine, 1)
            yield one, two


def _readings(machine: Machine, seconds: float) -> int:
    """How many it does in so long."""
    began = time.monotonic()
    _work(machine, TRIAL)
    return max(TRIAL, round(TRIAL * seconds / (time.monotonic() - began)))


def _turns(pair: tuple[Machine, Machine], pace: Pace) -> list[float]:
    """Seconds of each turn."""
    took: list[float] = []
    while len(took) < pace.turns and sum(took) < pace.span:
        began = time.monotonic()
        try:
            _work(pair[len(took) % 2], pace.readings, pace.longest)
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
        for _ in range(FILE // PAGE):
            out.write(os.urandom(RANDOM) + bytes(PAGE - RANDOM))
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


@contextmanager
def _held_to(group: Cgroup, limit: int, store: Path | None) -> Iterator[None]:
    """All in the group, and zram's store if there is one, get no more than `limit`; -1: what they want."""
    _hold_to(group, limit)
    if store is None:
        yield
        return
    done, most = threading.Event(), [0]

    def follow() -> None:
        held = 0
        while not done.wait(FOLLOW_S):
            used = int(store.read_text().split()[2])  # mem_used_total
            most[0] = max(most[0], used)
            if used != held:
                with suppress(OSError):  # EBUSY: it could not be made to use less so soon
                    _hold_to(group, limit - used)
                    held = used

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        _hold_to(group, limit)
        print(f"zram's store took up to {most[0] >> 20} MiB of the budget", file=sys.stderr, flush=True)


def _hold_to(group: Cgroup, size: int) -> None:
    for name, nothing in (("memory.limit_in_bytes", "-1"), ("memory.max", "max")):
        file = group.groups["memory"] / name
        if file.exists():
            file.write_text(nothing if size < 0 else str(size))


if __name__ == "__main__":
    main(sys.argv[1:])
