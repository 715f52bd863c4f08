"""What an idle machine of the kvm engine costs: PSS of its process, and how often its threads wake up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benches._table import Row, report
from nagaya.paths import Paths
from nagaya.testing.kvm_yard import KvmYard
from nagaya.testing.scratch import make_directory
from nagaya.testing.yard import pss_kib

MACHINES = 10
ROUNDS = 5
SETTLE_S = 2.0  # a second after its start a machine gives back what it needs no more
WATCHED_S = 2.0
BOUND_MIB = 6.0


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    rounds = [_round() for _ in range(ROUNDS)]
    alone, each, wakes = ([one[column] for one in rounds] for column in range(3))
    bound = {"the bound": [BOUND_MIB] * ROUNDS}
    rows = [
        Row(f"each of {MACHINES} machines", each, bound, "MiB", "lower", {"the bound": 1.0}),
        Row("one alone, the zygote's pages half its", alone, {}, "MiB", "lower"),
        Row("wake-ups of its threads", wakes, {"none": [0.0] * ROUNDS}, "1/s", "lower"),
    ]
    return report("An idle kvm machine", rows)


def _round() -> tuple[float, float, float]:
    top = make_directory()
    top.chmod(0o755)
    try:
        return asyncio.run(_measure(Paths(top / "r", top / "s", top / "c")))
    finally:
        shutil.rmtree(top)


async def _measure(paths: Paths) -> tuple[float, float, float]:
    for directory in (paths.run, paths.state):
        directory.mkdir(mode=0o755)
    yard = KvmYard(paths)
    try:
        processes = [await yard.start(yard.machine())]
        await asyncio.sleep(SETTLE_S)
        alone = pss_kib(processes[0].pid) / 1024
        for _ in range(1, MACHINES):
            processes.append(await yard.start(yard.machine()))
        await asyncio.sleep(SETTLE_S)
        each = mean(pss_kib(process.pid) for process in processes) / 1024
        before = sum(switches(process.pid) for process in processes)
        await asyncio.sleep(WATCHED_S)
        wakes = (sum(switches(process.pid) for process in processes) - before) / MACHINES / WATCHED_S
    finally:
        await yard.close()
    return alone, each, wakes


def switches(pid: int) -> int:
    """How often the threads of a process were given a CPU (proc(5), status)."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if "ctxt_switches" in line
    )


if __name__ == "__main__":
    main()
