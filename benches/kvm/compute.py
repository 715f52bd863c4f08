"""Compute in ring 3 of a guest beside the same loop as a program on the host, in turn."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, print_table
from benches.kvm._guests import payload, run_ours

ROUNDS = 7
LOOPS = ("integer", "sha256")
GUEST = Path(__file__).parents[1] / "guest"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "workload"
        subprocess.run(["gcc", "-O2", "-static", "-o", program, GUEST / "workload.c"], check=True)
        for index, loop in enumerate(LOOPS):
            guest = payload("compute", directory=GUEST, loop=index)
            ours, host = [], []
            for turn in range(ROUNDS):
                if turn % 2:
                    ours.append(run_ours(guest))
                host.append(1 / _seconds(program, loop))
                if not turn % 2:
                    ours.append(run_ours(guest))
            rows.append(Row(loop, ours, {"host": host}, "1/s", "higher", {"host": 0.99}))
    print_table("Compute in ring 3: loops a second", rows)
    return rows


def _seconds(program: Path, loop: str) -> float:
    done = subprocess.run([program, loop], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


if __name__ == "__main__":
    main()
