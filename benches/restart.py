"""The daemon's restart with ten running machines: from exec until all are adopted, and until the API answers.

The daemon is killed with SIGKILL each round; every machine must still be the same process afterwards.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, report
from benches.guest._nagaya import MARKER, console_log, own_nagaya, wait_for_output
from nagaya.errors import UnavailableError
from nagaya.sdk import Client, ensure_daemon

MACHINES = 10
ROUNDS = 7
TARGET = 1000.0  # ms until adopted


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    adopted, answering = [], []
    with own_nagaya() as client:
        for index in range(MACHINES):
            spec = {"name": f"idle{index}", "memory": "64MiB", "disks": [{"image": "busybox"}]}
            wait_for_output(console_log(client, client.machines.create(spec, start=True)), MARKER)
        time.sleep(2)  # their boots are over
        for _ in range(ROUNDS):
            known, answers = _round(client)
            adopted.append(known * 1000)
            answering.append(answers * 1000)
    bound = {"the bound": [TARGET] * ROUNDS}
    rows = [
        Row(f"{MACHINES} machines adopted", adopted, bound, "ms", "lower", {"the bound": 1.0}),
        Row("the API answers, client's start included", answering, {}, "ms", "lower"),
    ]
    return report("Restart of the daemon", rows)


def _round(client: Client) -> tuple[float, float]:
    """Kill it and start it: seconds from exec until all were adopted, and until the API listed them."""
    before = {machine.name: machine.info.pid for machine in client.machines.list()}
    pid = client.host().daemon_pid
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.001)
    begun = time.monotonic()
    ensure_daemon(client.paths)
    with Client(client.paths) as fresh:
        machines = fresh.machines.list()
        answered = time.monotonic() - begun
        after = {machine.name: machine.info.pid for machine in machines if machine.state == "running"}
        if after != before:
            raise UnavailableError(f"machines were lost: {before} became {after}")
        return fresh.host().adopted_in, answered


if __name__ == "__main__":
    main()
