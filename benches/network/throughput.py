"""One TCP stream (iperf3): machine to machine, machine to host and host to machine.

    python -m benches.network.throughput [--quick] [--json FILE]

The same User-mode Linux guests on our switch, on taps of a bridge with their own vector transport, and on
vde_switch; two namespaces with a cable (veth) between them are what the host's own network stack can do.
Interleaved rounds.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benches._table import Row, read_options, report
from benches.network.guests import Place, cpu_time
from benches.network.switches import OURS, VETH, Yard, all_yards, in_turn

TITLE = "Networks: one TCP stream"
BESIDE_OTHERS = 1.3
BESIDE_VETH = 0.6


@dataclass(frozen=True, slots=True)
class Sample:
    """One stream."""

    gbit: float  # a second
    cpu: float  # CPU seconds of all who take part, for 10 Gbit


# By way and switch, one a round.
Samples = Mapping[str, Mapping[str, Sequence[Sample]]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = read_options(__doc__, argv, rounds=(7, 5), seconds=(2, 1))
    with all_yards() as yards:
        samples = measure(yards, options.rounds, options.seconds)
    rows = [*_rates(samples), *_costs(samples)]
    return report(TITLE, rows, options)


def measure(yards: Mapping[str, Yard], rounds: int, seconds: int) -> Samples:
    """Each way of each switch, round by round."""
    samples: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for name, yard in in_turn(yards, rounds):
        ways: dict[str, tuple[Place, str]] = {
            "machine to machine": (yard.second, ""),
            "machine to host": (yard.host, "-R"),
            "host to machine": (yard.host, ""),
        }
        for way, (client, direction) in ways.items():
            samples[way][name].append(_stream(yard, client, direction, seconds))
    return samples


def _stream(yard: Yard, client: Place, direction: str, seconds: int) -> Sample:
    """From the client to the first machine or (`-R`) back."""
    before = cpu_time(yard.pids) + _clients_time()
    told = json.loads(client.run(f"iperf3 -c {yard.first.address} -t {seconds} -J {direction}"))
    spent = cpu_time(yard.pids) + _clients_time() - before
    gbit = told["end"]["sum_received"]["bits_per_second"] / 1e9
    return Sample(gbit, spent / (gbit * seconds) * 10)


def _clients_time() -> float:
    """CPU seconds of programs that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rates(samples: Samples) -> list[Row]:
    rows = []
    for way, by_name in samples.items():
        rates = {name: [one.gbit for one in found] for name, found in by_name.items()}
        ours = rates.pop(OURS)
        promises = {name: BESIDE_VETH if name == VETH else BESIDE_OTHERS for name in rates}
        rows.append(Row(way, ours, rates, "Gbit/s", "higher", promises))
    return rows


def _costs(samples: Samples) -> list[Row]:
    rows = []
    for way, by_name in samples.items():
        costs = {name: [one.cpu for one in found] for name, found in by_name.items()}
        rows.append(Row(f"CPU, {way}", costs.pop(OURS), costs, "s/10 Gbit", "lower"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
