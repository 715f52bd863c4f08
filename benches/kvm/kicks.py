"""Doorbells and interrupts of a payload in ring 3: our VMM beside a C program that makes the same ioctls.

Writes to an ioeventfd; and the way there and back: an ioeventfd, a process that answers each signal, an
irqfd, an MSI, the guest's handler. Neither passes through Python: the ratio says whether it is in the way.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from benches._table import Row, report
from benches.kvm._guests import Payload, build_peer, payload, run_peer
from nagaya.hw import layout
from nagaya.testing.bare import Bare

ROUNDS = 5
PEER = "C"
DOORBELL, VECTOR = 0xD0000000, 48
CASES = (
    ("kicks by ioeventfd", 200_000, False),
    ("kick, answer, MSI by irqfd", 10_000, True),
)


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    rows = []
    for name, count, answered in CASES:
        guest = payload("kick", count=count, answer=int(answered))
        ours, theirs = [], []
        for turn in range(ROUNDS):
            if turn % 2:
                ours.append(_ours(guest, answered))
            theirs.append(run_peer(guest, "answered" if answered else "silent"))
            if not turn % 2:
                ours.append(_ours(guest, answered))
        rows.append(Row(name, ours, {PEER: theirs}, "1/s", "higher", {PEER: 0.95}))
    return report("Kicks and interrupts", rows)


def _ours(guest: Payload, answered: bool) -> float:
    kick = os.eventfd(0)
    bare = Bare(guest.elf, guest.cmdline)
    try:
        vector = bare.machine.interrupts.vector()
        vector.unmask(layout.LAPIC, VECTOR)
        bare.machine.doorbells.bind(kick, DOORBELL, 0)
        with bare, _answerer(kick, vector.fd) if answered else nullcontext():
            rate = guest.rate(bare.finish())
            vector.close()
        return rate
    finally:
        os.close(kick)


@contextmanager
def _answerer(kick: int, call: int) -> Iterator[None]:
    process = subprocess.Popen([str(build_peer()), "answer", str(kick), str(call)], pass_fds=(kick, call))
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
