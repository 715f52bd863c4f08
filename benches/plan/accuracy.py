"""How right `nagaya plan` is: what it says of one machine more, and what all of them then get.

    python -m benches.plan.accuracy [--quick] [--where simulated|file] [--json FILE]

Three mixes: readers at depth 1, streaming writers beside a reader, and bursts beside a reader; on a simulated
device whose service times vary, and on a real file. Each is recorded, one more of its first kind is predicted
from the recording alone, then it is run, twice. Throughput and p99 are those of the plane, from a request's
arrival to its answer: what `nagaya top` shows. The prediction knows nothing of these runs. How far two runs
of the same are from their mean is the floor: no prediction can be better.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from benches._table import Row, report
from benches.arbitration.machines import Asks, Crowd, our_plane
from benches.disk.backends import benched_file, build_vub
from nagaya.plane.demand import Device, WorkerDemand, simulate

MIB = 1 << 20
REPLAYS = 8  # as long as the run, with other random numbers
BOUND = "the bound"
FLOOR = "floor: two runs of the same"
MOST = 15.0  # percent that the median may be off

# 8 at a time, 0.8 ms each and the time of the bytes, half of it drawn anew for each: little CPU, so that the
# device is measured, and a p99 that is the device's. Of a constant time it would be the host's.
SIMULATED = {
    "size": 8 << 30, "device": "bench", "parallel": 8, "read_us": 800, "write_us": 800,
    "bytes_per_second": 200 * MIB, "varies_percent": 50,
}  # fmt: skip

READER = Asks(depth=1)
PACED = Asks(depth=1, rate=190)
STREAM = Asks(depth=8, op="write", block=65536, order="sequential")
BURST = Asks(depth=32, rate=640)

# Of each kind, how many are recorded; of the first there is one more then.
MIXES: Mapping[str, Mapping[str, tuple[Asks, int]]] = {
    "readers": {"reader": (READER, 8)},
    "streams": {"stream": (STREAM, 2), "reader": (PACED, 1)},
    "bursts": {"burst": (BURST, 3), "reader": (PACED, 1)},
}
# Of their rates, from one of a kind to the next: their clocks meet at all places, as those of strangers do.
APART = 0.02
FILE_READERS = {"reader": (READER, 3)}  # more would measure how two CPUs are shared by clients

Measured = dict[str, tuple[float, float]]  # kind: requests a second, and p99 in us


@dataclass(frozen=True, slots=True)
class Found:
    """One figure: foreseen, and measured twice."""

    foreseen: float
    measured: float
    again: float

    @property
    def error(self) -> float:
        """Of the forecast, in percent of what was measured on average."""
        return abs(self.foreseen / mean((self.measured, self.again)) - 1) * 100

    @property
    def floor(self) -> float:
        """How far one measurement is from the average of both, in percent."""
        return abs(self.measured / mean((self.measured, self.again)) - 1) * 100


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Record, predict, run; print the errors. Returns the rows."""
    options = _options(argv)
    found: dict[str, list[Found]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        path = options.file or directory / "disk.raw"
        file = stack.enter_context(benched_file(path, options.size_mib * MIB))
        crowd = Crowd(build_vub(Path(__file__).parents[2]), options.seconds, options.warm_up)
        for _ in range(options.rounds):
            for where in options.where:
                for name, mix in MIXES.items():
                    chosen = FILE_READERS if (where, name) == ("file", "readers") else mix
                    place = file if where == "file" else None
                    for label, one in _mix(crowd, directory, place, chosen).items():
                        found.setdefault(f"{where}, {name}: {label}", []).append(one)
    rows = _rows(found)
    title = "nagaya plan: one machine more, foreseen and then run"
    return report(title, rows, options)


def _mix(
    crowd: Crowd, directory: Path, file: Path | None, mix: Mapping[str, tuple[Asks, int]]
) -> dict[str, Found]:
    """Foreseen and measured, by label."""
    first = next(iter(mix))
    more = {kind: (asks, count + (kind == first)) for kind, (asks, count) in mix.items()}
    demand, device = _run(crowd, directory, file, mix)
    like = next(one for one in demand.patterns if one["id"].startswith(f"{first}0/"))
    patterns = [*demand.patterns, {**like, "id": f"{first}-more/disk0"}]
    outcomes = [
        simulate(device, patterns, seconds=crowd.seconds, warm_up=crowd.warm_up, seed=seed)
        for seed in range(REPLAYS)
    ]
    leaves = [(leaf.id, leaf.iops, leaf.p99_us) for outcome in outcomes for leaf in outcome.leaves]
    foreseen = _by_kind(mix, leaves)
    measured, again = (_by_kind(mix, _got(_run(crowd, directory, file, more)[0])) for _ in range(2))
    return {
        f"{kind}, {what}": Found(foreseen[kind][at], measured[kind][at], again[kind][at])
        for kind in mix
        for at, what in enumerate(("IOPS", "p99 us"))
    }


def _run(
    crowd: Crowd, directory: Path, file: Path | None, mix: Mapping[str, tuple[Asks, int]]
) -> tuple[WorkerDemand, Device]:
    """What was recorded of the machines after the warm-up."""
    with our_plane(directory, file, SIMULATED) as plane:
        asks = {
            f"{kind}{number}": replace(one, rate=round(one.rate * (1 + APART * number)))
            for kind, (one, count) in mix.items()
            for number in range(count)
        }
        sockets = {name: plane.add(name) for name in asks}
        timer = threading.Timer(crowd.warm_up, lambda: plane.demand(anew=True))
        timer.start()
        crowd.ask(sockets, asks)
        timer.join()
        demand, state = plane.demand(anew=False), plane.arbiter()
    return demand, Device(demand.cells, state["capacity_iops"], state["capacity"])


def _got(demand: WorkerDemand) -> list[tuple[str, float, float]]:
    return [
        (one["id"], sum(row["count"] for row in one["mix"]) / one["recorded_us"] * 1e6, one["p99_us"])
        for one in demand.patterns
    ]


def _by_kind(mix: Mapping[str, object], got: Sequence[tuple[str, float, float]]) -> Measured:
    found: Measured = {}
    for kind in mix:
        of = [(iops, p99) for name, iops, p99 in got if name.startswith(kind)]
        found[kind] = mean(iops for iops, _ in of), mean(p99 for _, p99 in of)
    return found


def _rows(found: Mapping[str, Sequence[Found]]) -> list[Row]:
    rows = []
    for label, every in found.items():
        unit = "us" if label.endswith("us") else "1/s"
        peers = {"measured": [one.measured for one in every], "again": [one.again for one in every]}
        rows.append(Row(label, [one.foreseen for one in every], peers, unit, "lower"))
    for part in ("simulated", "file", "IOPS", "p99", ""):
        errors = [median(one.error for one in every) for label, every in found.items() if part in label]
        floors = [median(one.floor for one in every) for label, every in found.items() if part in label]
        if errors:
            name = f"median error {part}".strip()
            peers = {BOUND: [MOST], FLOOR: [median(floors)]}
            rows.append(Row(name, [median(errors)], peers, "%", "lower", {BOUND: 1.0}))
    return rows


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.plan.accuracy", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round: a look, not a figure")
    parser.add_argument("--where", nargs="+", choices=("simulated", "file"), default=("simulated", "file"))
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--warm-up", type=float, default=2.5, help="seconds before it")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the file")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
