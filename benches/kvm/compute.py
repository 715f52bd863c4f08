"""Compute in ring 3 of a guest beside the same loop as a program on the host, in turn.

And beside the same payload on the least VMM in C: what of a difference is the host's KVM and not ours.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, report
from benches.kvm._guests import payload, run_ours, run_peer

ROUNDS = 7
LOOPS = ("integer", "sha256")
# What makes the compiler write the loops as it does for a payload (nagaya.testing.payload).
SAME_CODE = [
    *("-std=gnu11", "-O2", "-static", "-no-pie", "-fno-pie", "-mno-red-zone", "-fno-stack-protector"),
    *("-fno-strict-aliasing", "-fcf-protection=none", "-ffunction-sections"),
]
GUEST = Path(__file__).parents[1] / "guest"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "workload"
        subprocess.run(["gcc", *SAME_CODE, "-o", program, GUEST / "workload.c"], check=True)
        for index, loop in enumerate(LOOPS):
            guest = payload("compute", directory=GUEST, loop=index)
            ours, host, peer = [], [], []
            for turn in range(ROUNDS):
                if turn % 2:
                    ours.append(run_ours(guest))
                host.append(1 / _seconds(program, loop))
                peer.append(run_peer(guest))
                if not turn % 2:
                    ours.append(run_ours(guest))
            rows.append(Row(loop, ours, {"host": host, "C": peer}, "1/s", "higher", {"host": 0.99}))
    return report("Compute in ring 3: loops a second", rows)


def _seconds(program: Path, loop: str) -> float:
    done = subprocess.run([program, loop], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


if __name__ == "__main__":
    main()
