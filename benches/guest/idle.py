"""Idle cost: PSS of everything that runs for one more idle machine, beyond its User-mode Linux.

Ours counts the daemon, the plane's holder and workers, and the zygote: with one machine, and with ten.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil

from benches._table import Row, report
from benches.guest._nagaya import MARKER, console_log, own_nagaya, wait_for_output
from nagaya.sdk import Client

MORE = 9
ROUNDS = 5
TARGET = 8.0  # MiB for each machine after the first


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    ours, machine = [], []
    for _ in range(ROUNDS):
        with own_nagaya() as client:
            _start(client, 0)
            time.sleep(2)
            one = _overhead(client)
            for index in range(1, MORE + 1):
                _start(client, index)
            time.sleep(2)
            ours.append((_overhead(client) - one) / MORE)
            machine.append(sum(_pss_of_tree(m.info.pid) for m in client.machines.list()) / (MORE + 1))
    row = Row(
        "each machine after the first",
        ours,
        {"the bound": [TARGET] * ROUNDS},
        "MiB",
        "lower",
        {"the bound": 1.0},
    )
    guest = Row("the machine's own processes (128 MiB of RAM)", machine, {}, "MiB", "lower")
    return report("Idle cost: PSS beyond User-mode Linux itself", [row, guest])


def _start(client: Client, index: int) -> None:
    spec = {"name": f"idle{index}", "memory": "128MiB", "disks": [{"image": "busybox"}]}
    machine = client.machines.create(spec, start=True)
    wait_for_output(console_log(client, machine), MARKER)


def _overhead(client: Client) -> float:
    host = client.host()
    pids = {host.daemon_pid, host.plane_pid, host.zygote_pid} - {None}
    guests = {machine.info.pid for machine in client.machines.list()}
    workers = {
        child.pid
        for pid in pids
        if pid is not None
        for child in psutil.Process(pid).children(recursive=True)
        if not guests & {child.pid, *(parent.pid for parent in child.parents())}
    }
    return sum(_pss(pid) for pid in pids | workers if pid is not None)


def _pss_of_tree(pid: int | None) -> float:
    if pid is None:
        return 0.0
    return sum(
        _pss(one) for one in [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    )


def _pss(pid: int) -> float:
    return psutil.Process(pid).memory_full_info().pss / 2**20


if __name__ == "__main__":
    main()
