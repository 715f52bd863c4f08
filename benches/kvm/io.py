"""Block I/O from a payload in ring 3: our VMM and plane, beside QEMU's microvm and qemu-storage-daemon.

    python -m benches.kvm.io [--quick] [--cached]

The same payload, the same preallocated file, 4 KiB random; it polls its used ring, or waits for interrupts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benches._table import Row, report
from benches.disk.backends import benched_file, our_plane, qemu_storage_daemon
from benches.disk.disks import raw
from benches.kvm._guests import payload, run_ours, run_qemu
from nagaya.kvm.config import DeviceConfig

PEER = "microvm + qemu-storage-daemon"
LOADS = (  # op, depth, sleeps
    ("read", 1, False),
    ("read", 32, False),
    ("write", 1, False),
    ("write", 32, False),
    ("read", 1, True),
    ("read", 32, True),
)
TARGETS = {1: 1.1, 32: 1.0}
MIB = 1 << 20


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = _options(argv)
    ours, theirs = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        file = stack.enter_context(
            benched_file(options.file or directory / "disk.raw", options.size_mib * MIB)
        )
        served, unused = raw(file, direct=not options.cached), Path()
        stack.enter_context(our_plane(unused, served, directory))
        stack.enter_context(qemu_storage_daemon(unused, served, directory))
        disk = DeviceConfig("bench", "blk", str(directory / "ours.sock"))
        for turn in range(options.rounds):
            for index, (op, depth, sleeps) in enumerate(LOADS):
                guest = payload("blk", op=int(op == "write"), depth=depth, irq=int(sleeps), ms=options.ms)
                runs = [
                    lambda guest=guest, into=ours[index]: into.append(run_ours(guest, [disk])),
                    lambda guest=guest, into=theirs[index]: into.append(
                        run_qemu(guest, directory / "qsd.sock")
                    ),
                ]
                for run in runs if turn % 2 else reversed(runs):
                    run()
    rows = [
        Row(_name(*load), ours[index], {PEER: theirs[index]}, "IOPS", "higher", {PEER: TARGETS[load[1]]})
        for index, load in enumerate(LOADS)
    ]
    where = "from the page cache" if options.cached else "direct"
    return report(f"Block I/O of a guest, 4 KiB random, {where}", rows)


def _name(op: str, depth: int, sleeps: bool) -> str:
    return f"{op}, depth {depth}, guest {'sleeps' if sleeps else 'polls'}"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.kvm.io", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="3 short rounds: a look, not a figure")
    parser.add_argument("--cached", action="store_true", help="no O_DIRECT: what the path itself costs")
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    options = parser.parse_args(argv)
    options.rounds, options.ms = (3, 300) if options.quick else (5, 800)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
