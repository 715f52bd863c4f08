"""CPU: the same static binary on the host and in a guest, in turn, on the same CPU.

The guest is left alone meanwhile: whoever waits for a command asks the guest's agent again and again
whether it has ended, which takes half a percent of the guest's CPU.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, report
from benches.guest._nagaya import own_nagaya
from nagaya.sdk import Machine

ROUNDS = 7
LOOK_S = 2.0  # longer than a loop takes on a host that is not busy
LOOPS = ("integer", "memory", "sha256")
TARGETS = {"integer": 1 / 0.99, "sha256": 1 / 0.99}


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    with tempfile.TemporaryDirectory() as directory, own_nagaya() as client:
        binary = Path(directory) / "workload"
        source = Path(__file__).with_name("workload.c")
        subprocess.run(["cc", "-O2", "-static", "-o", binary, source], check=True)
        spec = {"name": "cpu", "memory": "512MiB", "disks": [{"image": "busybox"}]}
        machine = client.machines.create(spec, start=True)
        machine.exec(
            ["sh", "-c", "cat > /tmp/workload && chmod +x /tmp/workload"], stdin=binary.read_bytes(), wait=30
        )
        rows = [_row(loop, machine, binary) for loop in LOOPS]
    return report("CPU: seconds for the same binary in a guest (ours) and on the host", rows)


def _row(loop: str, machine: Machine, binary: Path) -> Row:
    guest, host = [], []
    cpu = next(iter(os.sched_getaffinity(machine.info.pid or 0)))
    for _ in range(ROUNDS):
        guest.append(_in_guest(loop, machine))
        run = subprocess.run(
            ["taskset", "-c", str(cpu), binary, loop], check=True, capture_output=True, text=True
        )
        host.append(float(run.stdout.split()[0]))
    targets = {"host": TARGETS[loop]} if loop in TARGETS else {}
    return Row(loop, guest, {"host": host}, "s", "lower", targets)


def _in_guest(loop: str, machine: Machine) -> float:
    machine.exec(["sh", "-c", f"rm -f /tmp/took; /tmp/workload {loop} >/tmp/took 2>&1 </dev/null &"])
    while True:
        time.sleep(LOOK_S)
        took = machine.exec(["cat", "/tmp/took"]).stdout.split()
        if took:
            return float(took[0])


if __name__ == "__main__":
    main()
