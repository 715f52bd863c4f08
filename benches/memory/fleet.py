"""Idle Debian machines of 512 MiB: host memory for each, before the broker and after it has settled.

The machines boot, run a shell command that reads all programs of the guest into its cache, and rest. Then the
broker gets a budget of 128 MiB for each, and then of 80. What is counted is what the host holds: the guests'
memory files, by the host's own counters. What it is used for, below it, is what the guests say.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.errors import NagayaError
from nagaya.models.memory import MachineMemoryInfo
from nagaya.sdk import Client, Machine

MIB = 2**20
SIZE = 512 * MIB
BUDGETS = (128, 80)  # MiB for each
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
            {"name": f"idle{index}", "memory": SIZE, "disks": [{"image": "debian"}]} for index in range(count)
        ]
        for first in range(0, count, AT_ONCE):
            group = [client.machines.create(spec, start=True) for spec in specs[first : first + AT_ONCE]]
            for machine in group:
                machine.wait("agent", PATIENCE_S).exec(["sh", "-c", READ], timeout=PATIENCE_S)
            print(f"{first + len(group)} machines are up", file=sys.stderr, flush=True)
        time.sleep(SETTLED_S)
        without = _each(client)
        rows, took = [], []
        for each in BUDGETS:
            began = time.monotonic()
            client.memory.set([("broker", True), ("budget", each * MIB * count)])
            took.append(_settle(client) - began)
            print(f"{each} MiB: settled after {took[-1]:.1f} s", file=sys.stderr, flush=True)
            name = f"host memory of a machine, {each} MiB of budget"
            rows.append(Row(name, _each(client), {"without the broker": without}, "MiB", "lower"))
            rows += [Row(f"  {what}", sizes, {}, "MiB", "lower") for what, sizes in _uses(client).items()]
    return report(f"{count} idle Debian machines of 512 MiB", rows, options, settled_s=took)


def _each(client: Client) -> list[float]:
    return [(one.resident or 0) / MIB for one in client.memory.show().machines]


def _uses(client: Client) -> dict[str, list[float]]:
    """What the host holds of each machine is used for, in MiB."""
    shown = {one.name: one for one in client.memory.show().machines}
    found: dict[str, list[float]] = {}
    for machine in client.machines.list():
        for what, size in _use(machine, shown[machine.name]).items():
            found.setdefault(what, []).append(size / MIB)
    return found


def _use(machine: Machine, held: MachineMemoryInfo) -> dict[str, int]:
    done = machine.exec(["cat", "/proc/meminfo"])
    if done.exit_code:
        raise NagayaError(f"{machine}: {done}")
    lines = (line.split() for line in done.stdout.decode().splitlines())
    said = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    uses = {
        "slabs, stacks, tables": said["Slab"] + said["KernelStack"] + said["PageTables"] + said["Percpu"],
        "programs' own": said["AnonPages"] + said["Shmem"],
        "programs' files": said["Mapped"],
        "other caches": said["Cached"] + said["Buffers"] - said["Shmem"] - said["Mapped"],
    }
    rest = (held.guest or 0) - sum(uses.values())
    return uses | {"kernel, and what is free": rest, "processes on the host": held.own or 0}


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
