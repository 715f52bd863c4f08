"""Disk: random 4 KiB reads and writes, on our plane, on qemu-storage-daemon and by fio.

    python -m benches.disk.run [--quick] [--cached] [--json FILE]

One preallocated file, one vhost-user client, interleaved rounds: within a row only who serves differs.
The client either sleeps until it is called or polls. `--cached` measures what the backends themselves
cost: the file lies in the page cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from benches._table import Row, print_table, to_json
from benches.disk.backends import (
    Fio,
    Load,
    Sample,
    Target,
    benched_file,
    build_vub,
    our_plane,
    qemu_storage_daemon,
)

Mode = Literal["block", "poll"]
OPS: tuple[Literal["read", "write"], ...] = ("read", "write")
MODES: tuple[Mode, ...] = get_args(Mode)
DEPTHS = (1, 8, 32)
QSD = "qemu-storage-daemon"
MIB = 1 << 20

# A measured case and who was measured: its samples, one a round.
Samples = dict[tuple[Load, str], list[Sample]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = _options(argv)
    direct = not options.cached
    title = "Disk, 4 KiB random, " + ("direct" if direct else "from the page cache")
    with ExitStack() as stack:
        # Short: a vhost-user socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        path = options.file or directory / "disk.raw"
        file = stack.enter_context(benched_file(path, options.size_mib * MIB))
        vub = build_vub(Path(__file__).parents[2])
        targets: dict[str, Target] = {
            "ours": stack.enter_context(our_plane(vub, file, directory, direct)),
            QSD: stack.enter_context(qemu_storage_daemon(vub, file, directory, direct)),
            "fio": Fio(file, direct),
        }
        samples = measure(targets, options.rounds, options.seconds, options.depths)
    rows = [*_rate_rows(samples, direct), *_cpu_rows(samples)]
    print_table(title, rows)
    if options.json:
        options.json.write_text(to_json(title, rows, p99_us=_p99(samples)))
    return rows


def measure(targets: dict[str, Target], rounds: int, seconds: float, depths: Sequence[int]) -> Samples:
    """Put each load on each target, round by round, the order turned by one each round.

    fio has no client, so one sample of it stands beside both modes of a round.
    """
    samples: Samples = defaultdict(list)
    names = list(targets)
    for turn, op, depth in product(range(rounds), OPS, depths):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            loads = [Load(op, depth, mode, seconds) for mode in MODES]
            if name == "fio":
                sample = targets[name].measure(loads[0])
                for load in loads:
                    samples[load, name].append(sample)
                continue
            for load in loads:
                samples[load, name].append(targets[name].measure(load))
    return samples


def _rate_rows(samples: Samples, direct: bool) -> list[Row]:
    rows = []
    for load in _loads(samples):
        rate = {name: [sample.iops for sample in samples[load, name]] for name in ("ours", QSD, "fio")}
        # Without a device to wait for, fio has no virtqueue to cross and the comparison with it says nothing.
        targets = {QSD: 1.1} if load.depth == 1 else {QSD: 1.0, "fio": 0.9} if direct else {QSD: 1.0}
        rows.append(Row(_name(load), rate.pop("ours"), rate, "IOPS", "higher", targets))
    return rows


def _cpu_rows(samples: Samples) -> list[Row]:
    rows = []
    for load in _loads(samples):
        cost = {name: [sample.cpu_us for sample in samples[load, name]] for name in ("ours", QSD, "fio")}
        row = Row(f"CPU, {_name(load)}", cost.pop("ours"), cost, "us/IO", "lower", {QSD: 1.0, "fio": 1.0})
        rows.append(row)
    return rows


def _p99(samples: Samples) -> dict[str, list[float]]:
    return {f"{_name(load)}, {name}": [one.p99_us for one in many] for (load, name), many in samples.items()}


def _loads(samples: Samples) -> list[Load]:
    seen = dict.fromkeys(load for load, _ in samples)
    return sorted(seen, key=lambda load: (load.op, load.mode, load.depth))


def _name(load: Load) -> str:
    client = {"block": "blocking", "poll": "polling"}[load.mode]
    return f"{load.op}, depth {load.depth}, {client} client"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.disk.run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.5 s: a look, not a figure")
    parser.add_argument(
        "--cached", action="store_true", help="no O_DIRECT: what the backends themselves cost"
    )
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 2")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--size-mib", type=int, help="of the file, default 2048 (512 with --cached)")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.size_mib = options.size_mib or (512 if options.cached else 2048)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
