"""kill -9 of the switch's worker under a TCP stream (iperf3) between machines: for how long nothing arrives.

    python -m benches.network.killed [--quick]

The counter of what the receiving machine was given is read every millisecond. The longest time in which it
stood still in the second and a half after a kill is a sample; beside them, the same without a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benches._table import Row, report
from benches.network.guests import workplace
from benches.network.kernel import bench_kernel
from benches.network.switches import Yard, ours

from nagaya import _core
from nagaya.errors import UnavailableError

KILLS = 10
APART_S = 1.5
BOUND = 1000.0  # ms
LOOK_S = 0.001


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and return its rows."""
    kills = _options(argv).kills
    with ExitStack() as stack:
        directory = stack.enter_context(workplace())
        yard = stack.enter_context(ours(bench_kernel(), directory))
        undisturbed, killed, sent = measure(yard, kills)
    bound = {"the bound": [BOUND] * kills}
    rows = [
        Row("worker killed: longest silence", killed, bound, "ms", "lower", {"the bound": 1.0}),
        Row("worker left alone: longest silence", undisturbed, {}, "ms", "lower"),
        Row("the stream, to its end", [sent], {}, "Gbit/s", "higher"),
    ]
    return report("Networks: kill -9 of the switch under a TCP stream", rows)


def measure(yard: Yard, kills: int) -> tuple[list[float], list[float], float]:
    """The longest silences, ms, without kills and with, and the stream's Gbit/s over its whole time."""
    if yard.plane is None:
        raise UnavailableError("only our switch has a worker to kill")
    told: list[str] = []
    seconds = int((2 * kills + 2) * APART_S)
    stream = threading.Thread(
        target=lambda: told.append(yard.second.run(f"iperf3 -c {yard.first.address} -t {seconds} -J"))
    )
    stream.start()
    time.sleep(APART_S)
    undisturbed = [_silence(yard.plane, APART_S) for _ in range(kills)]
    killed = []
    for _ in range(kills):
        os.kill(_worker(yard.plane), signal.SIGKILL)
        killed.append(_silence(yard.plane, APART_S))
    stream.join()
    summary = json.loads(told[0])
    if "error" in summary:
        raise UnavailableError(f"the stream broke off: {summary['error']}")
    return undisturbed, killed, summary["end"]["sum_received"]["bits_per_second"] / 1e9


def _silence(plane: _core.Plane, seconds: float) -> float:
    """The longest time, ms, in which the first machine was given nothing, of the next `seconds`."""
    begun = last = time.monotonic()
    longest, seen = 0.0, _given(plane)
    while (now := time.monotonic()) < begun + seconds:
        given = _given(plane)
        if given != seen:
            seen, last = given, now
        longest = max(longest, now - last)
        time.sleep(LOOK_S)
    return longest * 1000


def _given(plane: _core.Plane) -> int:
    (port,) = (one for one in json.loads(plane.query_ports("bench")) if one["id"] == "m2/net0")
    return int(port["rx_bytes"])


def _worker(plane: _core.Plane) -> int:
    (worker,) = json.loads(plane.query())["workers"]
    return int(worker["pid"])


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--quick", action="store_true", help="the same: it takes 35 s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
