"""Small packets, one in flight: ping and UDP round trips, between machines, and from the host to a machine.

    python -m benches.network.latency [--quick] [--json FILE]

The yards of `benches.network.throughput`. UDP is asked back to back, and with a pause of 1 ms after each
answer, when everybody has gone to sleep. A sample is the median of a run, or what one in a hundred exceeds
(p99).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from benches._table import Row, read_options, report
from benches.network.guests import ECHO_PORT, Place
from benches.network.switches import OURS, VECTOR, Yard, all_yards, in_turn

from nagaya.errors import UnavailableError

TITLE = "Networks: round trips of small packets"
BESIDE_TAP = 1.0
PAUSES = {"back to back": 0, "1 ms apart": 1000}  # us

# By what was asked and switch: us, one a round.
Samples = Mapping[str, Mapping[str, Sequence[float]]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = read_options(__doc__, argv, rounds=(9, 5), count=(500, 200))
    with all_yards() as yards:
        samples = measure(yards, options.rounds, options.count)
    rows = []
    for what, by_name in samples.items():
        peers = dict(by_name)
        rows.append(Row(what, peers.pop(OURS), peers, "us", "lower", {VECTOR: BESIDE_TAP}))
    return report(TITLE, rows, options)


def measure(yards: Mapping[str, Yard], rounds: int, count: int) -> Samples:
    """Everything with each switch, round by round, `count` packets each."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, yard in in_turn(yards, rounds):
        for whence, client in {"machine to machine": yard.second, "host to machine": yard.host}.items():
            samples[f"ping, {whence}"][name].append(median(_ping(client, yard.first, count)))
            for pace, pause in PAUSES.items():
                times = sorted(_udp(client, yard.first, count, pause))
                samples[f"UDP, {pace}, {whence}"][name].append(median(times))
                samples[f"UDP, {pace}, {whence}, p99"][name].append(times[len(times) * 99 // 100])
    return samples


def _ping(client: Place, server: Place, count: int) -> list[float]:
    told = client.run(f"busybox ping -c {count} -i 0.005 {server.address}")
    return _answers([float(time) * 1000 for time in re.findall(r"time=([0-9.]+) ms", told)], count)


def _udp(client: Place, server: Place, count: int, pause: int) -> list[float]:
    told = client.run(f"roundtrip ask {server.address} {ECHO_PORT} {count} {pause}")
    return _answers([int(ns) / 1000 for ns in told.split() if int(ns) > 0], count)


def _answers(times: list[float], count: int) -> list[float]:
    if len(times) < count * 0.9:
        raise UnavailableError(f"only {len(times)} of {count} packets were answered")
    return times


if __name__ == "__main__":
    main(sys.argv[1:])
