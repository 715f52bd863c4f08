"""How fast 256 MiB of a guest's memory move while it runs: into huge pages and out, to swap and back.

A BusyBox guest on User-mode Linux holds 256 MiB of random bytes in a file system in memory, and does nothing
else. The swap is a zram device that the bench makes and removes; it needs root and the kernel's zram. What
was moved is what the host's counters say, and the time is for 256 MiB at the rate measured. The promise is a
bound for swap: 256 MiB in a second. At the end the guest finds its bytes as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.errors import ConflictError, UnavailableError
from nagaya.models.relocation import RelocationAnswer
from nagaya.sdk import Machine
from nagaya.testing.swap import CONTROL, swap

MIB = 2**20
HELD = 256  # MiB
BOUND = "the bound"
FILL = f"mount -t tmpfs -o size=90% none /mnt && dd if=/dev/urandom of=/mnt/f bs=1M count={HELD} 2>/dev/null"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, rounds=(7, 2))
    if not CONTROL.exists():
        raise UnavailableError("this bench needs zram, which the host's kernel has not")
    with own_nagaya() as client, swap(2 * HELD * MIB):
        spec = {"name": "memory", "memory": "384MiB", "disks": [{"image": "busybox"}]}
        machine = client.machines.create(spec, start=True).wait("agent", 60)
        _run(machine, FILL)
        before = _run(machine, "md5sum /mnt/f")
        moves: dict[str, Callable[[], RelocationAnswer]] = {
            "into huge pages": lambda: machine.relocate(huge=True),
            "out of huge pages": lambda: machine.relocate(huge=False),
            "to swap": lambda: machine.relocate(swap=HELD * MIB),
            "back from swap": lambda: machine.relocate(resident=True),
        }
        samples: dict[str, list[float]] = {name: [] for name in moves}
        for _ in range(options.rounds):
            for name, move in moves.items():
                samples[name].append(_seconds(move()))
            _run(machine, "cat /mnt/f >/dev/null")
        if _run(machine, "md5sum /mnt/f") != before:
            raise ConflictError("the guest's memory is not what it was")
    title = f"{HELD} MiB of a guest that move while it runs"
    rows = [
        Row(name, found, {BOUND: [1.0] * len(found)}, "s", "lower", {BOUND: 1.0} if "swap" in name else {})
        for name, found in samples.items()
    ]
    return report(title, rows, options)


def _seconds(answer: RelocationAnswer) -> float:
    """Of 256 MiB at the rate of this move."""
    if not answer.done:
        raise UnavailableError(f"nothing was moved ({answer.kind}, of {answer.asked} bytes)")
    return answer.seconds * HELD * MIB / answer.done


def _run(machine: Machine, command: str) -> bytes:
    done = machine.exec(["sh", "-c", command])
    if done.exit_code:
        raise UnavailableError(f"the guest's {command!r} ended with {done.exit_code}")
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
