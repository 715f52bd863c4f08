"""Disk: random 4 KiB reads and writes, on our plane, on qemu-storage-daemon and by fio.

    python -m benches.disk.run [--disk raw|cached|null|qcow2|first-writes] [--quick]
        [--own-cpus] [--json FILE]

One vhost-user client, interleaved rounds: within a row only who serves differs. The client either sleeps
until it is called or polls. The disk is

- `raw`, a preallocated file past the page cache;
- `cached`, the same in the page cache, and `null`, nothing at all: what the backends themselves cost;
- `qcow2`, all of whose clusters are there;
- `first-writes`: an overlay of a raw base, made anew for each sample, so that a write is one that copies
  its cluster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from benches._table import Row, report
from benches.disk import disks
from benches.disk.backends import (
    Client,
    Fio,
    Fresh,
    Load,
    Sample,
    Target,
    benched_file,
    build_vub,
    our_plane,
    qemu_storage_daemon,
)

Mode = Literal["block", "poll"]
Op = Literal["read", "write"]
OPS: tuple[Op, ...] = get_args(Op)
MODES: tuple[Mode, ...] = get_args(Mode)
DEPTHS = (1, 8, 32)
QSD = "qemu-storage-daemon"
# At each depth: what we promise beside qemu-storage-daemon, and beside fio.
RAW = {1: (1.15, 0.9), 8: (1.05, 0.95), 32: (1.0, 0.95)}
DISKS = ("raw", "cached", "null", "qcow2", "first-writes")
MIB = 1 << 20
WARM_S = 3.0  # at depth 32 some 200,000 reads, of 32,768 clusters

Backend = Callable[[Path, disks.Disk, Path], AbstractContextManager[Client]]

# A measured case and who was measured: its samples, one a round.
Samples = dict[tuple[Load, str], list[Sample]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = _options(argv)
    title = f"Disk, 4 KiB random, {options.disk}"
    with ExitStack() as stack:
        # Short: a vhost-user socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        targets = _targets(options, directory, stack)
        if options.own_cpus:
            for target in targets.values():
                target.own_cpus()
        first_writes = options.disk == "first-writes"
        if not first_writes:
            warm(targets.values())
        ops = ("write",) if first_writes else OPS
        samples = measure(targets, options.rounds, options.seconds, ops, options.depths)
    rows = [*_rate_rows(samples, options.disk), *_cpu_rows(samples)]
    return report(title, rows, options, p99_us=_p99(samples))


def _targets(options: argparse.Namespace, directory: Path, stack: ExitStack) -> dict[str, Target]:
    """Who is measured, on the disk that was asked for."""
    vub = build_vub(Path(__file__).parents[2])
    size = options.size_mib * MIB
    if options.disk == "null":
        return _served(vub, disks.null(size), directory, stack)
    if options.disk == "qcow2":
        disk = stack.enter_context(disks.written_qcow2(directory / "disk.qcow2", size))
        return _served(vub, disk, directory, stack)
    file = stack.enter_context(benched_file(options.file or directory / "disk.raw", size))
    if options.disk == "first-writes":
        return {
            "ours": Fresh(partial(_on_fresh_overlay, our_plane, vub, file, directory)),
            QSD: Fresh(partial(_on_fresh_overlay, qemu_storage_daemon, vub, file, directory)),
        }
    direct = options.disk == "raw"
    targets = _served(vub, disks.raw(file, direct), directory, stack)
    return {**targets, "fio": Fio(file, direct)} if direct else targets


def _served(vub: Path, disk: disks.Disk, directory: Path, stack: ExitStack) -> dict[str, Target]:
    return {
        "ours": stack.enter_context(our_plane(vub, disk, directory)),
        QSD: stack.enter_context(qemu_storage_daemon(vub, disk, directory)),
    }


@contextmanager
def _on_fresh_overlay(backend: Backend, vub: Path, base: Path, directory: Path) -> Iterator[Client]:
    with (
        disks.fresh_overlay(directory / "top.qcow2", base) as disk,
        backend(vub, disk, directory) as client,
    ):
        yield client


def warm(targets: Iterable[Target]) -> None:
    """Read for a while, or whoever is measured first pays for what host and backends then remember."""
    for target in targets:
        target.measure(Load("read", 32, "poll", WARM_S))


def measure(
    targets: dict[str, Target], rounds: int, seconds: float, ops: Sequence[Op], depths: Sequence[int]
) -> Samples:
    """Put each load on each target, round by round, the order turned by one each round.

    A round has random blocks of its own, the same for all. fio has no client, so one sample of it stands
    beside both modes of a round.
    """
    samples: Samples = defaultdict(list)
    names = list(targets)
    for turn, op, depth in product(range(rounds), ops, depths):
        first, seed = turn % len(names), 2 * turn + 3
        for name in names[first:] + names[:first]:
            loads = [Load(op, depth, mode, seconds) for mode in MODES]
            if name == "fio":
                sample = targets[name].measure(loads[0], seed)
                for load in loads:
                    samples[load, name].append(sample)
                continue
            for load in loads:
                samples[load, name].append(targets[name].measure(load, seed))
    return samples


def _rate_rows(samples: Samples, disk: str) -> list[Row]:
    rows = []
    for load in _loads(samples):
        rate = _figures(samples, load, lambda sample: sample.iops)
        rows.append(Row(_name(load), rate.pop("ours"), rate, "IOPS", "higher", _promises(disk, load)))
    return rows


def _promises(disk: str, load: Load) -> dict[str, float]:
    """Ratios that we promise. Without a device, a client that sleeps would be what is measured."""
    match disk:
        case "raw":
            return {QSD: RAW[load.depth][0], "fio": RAW[load.depth][1]} if load.depth in RAW else {}
        case "cached":
            return {QSD: 1.5} if load.mode == "poll" else {}
        case "null":
            return {QSD: 3.0} if load.mode == "poll" and load.depth > 1 else {}
        case _:
            return {QSD: 1.1}


def _cpu_rows(samples: Samples) -> list[Row]:
    rows = []
    for load in _loads(samples):
        cost = _figures(samples, load, lambda sample: sample.cpu_us)
        ours = cost.pop("ours")
        rows.append(Row(f"CPU, {_name(load)}", ours, cost, "us/IO", "lower", dict.fromkeys(cost, 1.0)))
    return rows


def _figures(samples: Samples, load: Load, figure: Callable[[Sample], float]) -> dict[str, list[float]]:
    return {name: [figure(one) for one in many] for (of, name), many in samples.items() if of == load}


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
    parser.add_argument("--disk", choices=DISKS, default="raw")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 2")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--size-mib", type=int, help="of the file, default 2048 (512 if cached)")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument(
        "--own-cpus",
        action="store_true",
        help="what serves and who asks have a CPU each (root), also on a busy host. Writes to a file "
        "by a polling client starve: the kernel ends them in a thread of that CPU",
    )
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 2.0)
    options.size_mib = options.size_mib or (512 if options.disk == "cached" else 2048)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
