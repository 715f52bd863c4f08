"""Idle Debian machines of 512 MiB: host memory for each, before the broker and after it has settled.

The machines boot, run a shell command that reads all programs of the guest into its cache, and rest. Then the
broker gets a budget of 128 MiB for each. What is counted is what the host holds: the guests' memory files, by
the host's own counters.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.sdk import Client

MIB = 2**20
EACH = 128 * MIB  # of the budget
SETTLED_S = 5.0  # without a move
PATIENCE_S = 120
AT_ONCE = 2  # that boot: more take as long for all, and each of them longer than its agent is waited for
READ = "cat /usr/bin/* /usr/lib/*/*.so* >/dev/null"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, machines=(20, 4))
    count = int(options.machines)
    with own_nagaya() as client:
        client.memory.set([("broker", False)])
        specs = [
            {"name": f"idle{index}", "memory": "512MiB", "disks": [{"image": "debian"}]}
            for index in range(count)
        ]
        for first in range(0, count, AT_ONCE):
            group = [client.machines.create(spec, start=True) for spec in specs[first : first + AT_ONCE]]
            for machine in group:
                machine.wait("agent", PATIENCE_S).exec(["sh", "-c", READ], timeout=PATIENCE_S)
            print(f"{first + len(group)} machines are up", file=sys.stderr, flush=True)
        time.sleep(SETTLED_S)
        without = _each(client)
        began = time.monotonic()
        client.memory.set([("broker", True), ("budget", EACH * count)])
        took = _settle(client) - began
        settled = _each(client)
    title = f"{count} idle Debian machines of 512 MiB"
    rows = [Row("host memory of a machine", settled, {"without the broker": without}, "MiB", "lower")]
    print(f"settled after {took:.1f} s", file=sys.stderr)
    return report(title, rows, options, settled_s=took)


def _each(client: Client) -> list[float]:
    return [(one.resident or 0) / MIB for one in client.memory.show().machines]


def _settle(client: Client) -> float:
    """When the last move was, once there was none for a while."""
    deadline = time.monotonic() + PATIENCE_S
    last = time.monotonic()
    while time.monotonic() - last < SETTLED_S and time.monotonic() < deadline:
        if any(move.after is None for move in client.memory.moves(60)):
            last = time.monotonic()
        time.sleep(0.2)
    return last


if __name__ == "__main__":
    main(sys.argv[1:])
