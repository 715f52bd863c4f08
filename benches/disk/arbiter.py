"""What the arbiter, with its account of who waited for whom, costs a machine.

    python -m benches.disk.arbiter [--quick] [--disk raw|null] [--json FILE]

Random 4 KiB reads, by a machine that is alone, and beside one that reads 100 times a second: with the
arbiter, and with requests that go to the disk at once. What working out the account costs, ten times a
second, is in `cargo bench -p nagaya-plane --bench arbiter`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

from benches._table import Row, report
from benches.disk import disks
from benches.disk.backends import Client, Load, Sample, benched_file, build_vub, our_machines
from benches.disk.run import DEPTHS, MODES

MIB = 1 << 20
OFF = "without arbiter"
LEAST = 0.98  # of the throughput without: what we promise
RATE = 100  # reads a second of the other machine
Samples = dict[tuple[Load, bool, bool], list[Sample]]  # load, beside another machine, arbitrated


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = _options(argv)
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        # Short: a vhost-user socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        vub = build_vub(Path(__file__).parents[2])
        disk = disks.null(options.size_mib * MIB)
        if options.disk == "raw":
            file = options.file or directory / "disk.raw"
            disk = disks.raw(stack.enter_context(benched_file(file, options.size_mib * MIB)), direct=True)
        for turn, depth, mode in product(range(options.rounds), options.depths, MODES):
            load = Load("read", depth, mode, options.seconds)
            for beside, arbitrated in _turned(turn):
                with _machine(vub, disk, directory, beside, arbitrated) as machine:
                    samples[load, beside, arbitrated].append(machine.measure(load))
    title = f"Cost of the arbiter, 4 KiB random reads, {options.disk}"
    rows = [
        row for load in _loads(samples) for beside in (False, True) for row in _rows(samples, load, beside)
    ]
    return report(title, rows, options)


@contextmanager
def _machine(
    vub: Path, disk: disks.Disk, directory: Path, beside: bool, arbitrated: bool
) -> Iterator[Client]:
    names = ("ours", "other") if beside else ("ours",)
    with ExitStack() as stack:
        machines = stack.enter_context(our_machines(vub, disk, directory, names, arbitrated=arbitrated))
        for other in machines[1:]:
            stack.enter_context(other.trickle(RATE))
        yield machines[0]


def _turned(turn: int) -> list[tuple[bool, bool]]:
    """Who is measured, beginning with another one in each round."""
    cases = list(product((False, True), (True, False)))
    return cases[turn % len(cases) :] + cases[: turn % len(cases)]


def _loads(samples: Samples) -> list[Load]:
    return list(dict.fromkeys(load for load, _, _ in samples))


def _rows(samples: Samples, load: Load, beside: bool) -> Iterator[Row]:
    client = {"block": "blocking", "poll": "polling"}[load.mode]
    name = f"depth {load.depth}, {client} client{f', beside {RATE} reads a second' if beside else ''}"
    on, off = samples[load, beside, True], samples[load, beside, False]
    rate = [one.iops for one in on], {OFF: [one.iops for one in off]}
    yield Row(name, *rate, "IOPS", "higher", {OFF: LEAST})
    yield Row(
        f"CPU, {name}", [one.cpu_us for one in on], {OFF: [one.cpu_us for one in off]}, "us/IO", "lower"
    )


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.disk.arbiter", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.5 s: a look, not a figure")
    parser.add_argument("--disk", choices=("raw", "null"), default="raw")
    parser.add_argument("--rounds", type=int, help="default 9")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 2")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--size-mib", type=int, default=2048, help="of the file")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
