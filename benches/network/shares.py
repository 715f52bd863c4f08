"""Who gets how much of an uplink of 1 Gbit/s: on our plane, and beside a bridge of Linux with htb.

    python -m benches.network.shares [--quick] [--json FILE]

Machines are network namespaces that send by TCP, with a kernel's own congestion control; both ways they are
carried by the same program, with offloads (houses.py). What arrives is counted, as bytes on the wire. Needs
root. The first second is not counted.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from benches._table import Row, read_options, report
from benches.disk.backends import build_vub
from benches.network.houses import Bridge, House, Ours
from benches.network.traffic import SECOND, Arrived, Crowd

GIGABIT = 125_000_000
RESERVED = GIGABIT // 2
LIMIT = GIGABIT // 5
NO_BOUND = 100 * GIGABIT  # a rate that nothing reaches: frames pass the gate, and nobody waits
BOUND = "the bound"
HTB = "htb"

SENDERS = ("w1", "w2", "w4")
QUIET = "q"

Samples = dict[str, list[float]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = read_options(__doc__, argv, rounds=(5, 1), seconds=(4.0, 3.0))
    samples: Samples = defaultdict(list)
    vub = build_vub(Path(__file__).parents[2])
    crowd = Crowd(options.seconds)
    queue = ""
    for _ in range(options.rounds):
        queue = _round(samples, vub, crowd)
    rows = _rows(samples)
    title = f"Shares of 1 Gbit/s; htb with {queue}"
    return report(title, rows, options)


def _round(samples: Samples, vub: Path, crowd: Crowd) -> str:
    """All of it once, ours and the peer's; the peer's kind of queue."""
    with ExitStack() as stack:
        house = _ours(stack, vub, GIGABIT)
        _weights(samples, "ours", crowd, house, lambda name, weight: house.share(name, weight=weight * 100))
        _reservation(samples, "ours", crowd, house, _reserve_ours)
        house.share("w1", limit=LIMIT)
        _limit(samples, "ours", crowd.send(house, SENDERS))
        house.share("w1")
        _latency(samples, "ours", crowd, house)
        _port(samples, crowd, house)
    with ExitStack() as stack:
        peer = Bridge(stack, vub, [*SENDERS, QUIET], GIGABIT)
        _weights(samples, HTB, crowd, peer, lambda name, weight: peer.share(name, rate=_part(weight, 7)))
        _reservation(samples, HTB, crowd, peer, _reserve_htb)
        for name in SENDERS:
            peer.share(name, rate=_part(1, 4), ceiling=LIMIT if name == "w1" else GIGABIT)
        _limit(samples, HTB, crowd.send(peer, SENDERS))
        for name in SENDERS:
            peer.share(name, rate=_part(1, 4))
        _latency(samples, HTB, crowd, peer)
    for rate, name in ((NO_BOUND, "arbitrated"), (None, "not arbitrated")):
        with ExitStack() as stack:
            samples[name].append(crowd.send(_ours(stack, vub, rate), SENDERS).total() * 8 / 1e9)
    return peer.queue


def _ours(stack: ExitStack, vub: Path, rate: int | None) -> Ours:
    # Short: a vhost-user socket's path must fit in 107 bytes.
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
    return Ours(stack, vub, directory, [*SENDERS, QUIET], rate)


def _weights(
    samples: Samples, who: str, crowd: Crowd, house: House, weigh: Callable[[str, int], None]
) -> None:
    """Shares 1:2:4, and 4:2:1 from the middle on: measured from a second later."""

    def set_all(*weights: int) -> None:
        for name, weight in zip(SENDERS, weights, strict=True):
            weigh(name, weight)

    set_all(1, 2, 4)
    got = crowd.send(house, SENDERS, turn=lambda: set_all(4, 2, 1))
    half = int(crowd.seconds / 2 * SECOND)
    before = [got.bytes_of(name, 0, half) for name in SENDERS]
    after = [got.bytes_of(name, half + SECOND) for name in SENDERS]
    samples[f"{who}: weights 1:2:4"].append(_off(before, (1, 2, 4)))
    samples[f"{who}: a second after 4:2:1"].append(_off(after, (4, 2, 1)))
    set_all(1, 1, 1)


def _reserve_ours(house: House) -> None:
    house.share("w1", weight=1, reservation=RESERVED)
    for name in SENDERS[1:]:
        house.share(name, weight=1000)


def _reserve_htb(house: House) -> None:
    house.share("w1", rate=RESERVED)
    for name in SENDERS[1:]:
        house.share(name, rate=_part(1, 4))


def _reservation(
    samples: Samples, who: str, crowd: Crowd, house: House, reserve: Callable[[House], None]
) -> None:
    """Half of the link, which a weight of 1 would never get, beside two of weight 1000."""
    reserve(house)
    got = crowd.send(house, SENDERS).bytes_of("w1") / crowd.seconds
    samples[f"{who}: 500 Mbit/s reserved"].append(max(0.0, 1 - got / RESERVED) * 100)
    for name in SENDERS:
        house.share(name, **({"rate": _part(1, 4)} if isinstance(house, Bridge) else {}))


def _limit(samples: Samples, who: str, got: Arrived) -> None:
    """The busiest second of a machine with a limit, at any tenth of a second."""
    whole = len(got.slices["w1"])
    most = max(got.bytes_of("w1", at, at + SECOND) for at in range(whole - SECOND + 1))
    samples[f"{who}: limit of 200 Mbit/s"].append((most / LIMIT - 1) * 100)
    samples[f"{who}: total"].append(got.total() * 8 / 1e6)


def _latency(samples: Samples, who: str, crowd: Crowd, house: House) -> None:
    """100 round trips a second beside three that send as much as goes."""
    alone, beside = crowd.send(house, [], QUIET), crowd.send(house, SENDERS, QUIET)
    for part, name in ((0.5, "p50"), (0.99, "p99")):
        samples[f"{who}: {name} alone"].append(alone.trip(part))
        samples[f"{who}: {name} beside"].append(beside.trip(part))


def _port(samples: Samples, crowd: Crowd, house: Ours) -> None:
    """Three send to one machine with a limit: weights 1:2:4, and 4:2:1 from the middle on."""

    def weigh(*weights: int) -> None:
        for name, weight in zip(SENDERS, weights, strict=True):
            house.share(name, weight=weight * 100)

    weigh(1, 2, 4)
    house.share(QUIET, limit=LIMIT)
    got = crowd.send(house, SENDERS, turn=lambda: weigh(4, 2, 1), to=QUIET)
    half = int(crowd.seconds / 2 * SECOND)
    samples["port: weights 1:2:4"].append(_off([got.bytes_of(name, 0, half) for name in SENDERS], (1, 2, 4)))
    after = [got.bytes_of(name, half + SECOND) for name in SENDERS]
    samples["port: a second after 4:2:1"].append(_off(after, (4, 2, 1)))


def _part(weight: int, of: int) -> int:
    """A part of the link as a rate of htb's, with something left for the quiet machine."""
    return GIGABIT * 99 // 100 * weight // of


def _off(got: Sequence[float], shares: Sequence[int]) -> float:
    """How far the worst is from its share, in percent."""
    total, parts = sum(got), sum(shares)
    return max(abs(one / total * parts / share - 1) for one, share in zip(got, shares, strict=True)) * 100


def _rows(samples: Samples) -> list[Row]:
    rows = []
    bounds = {
        "weights 1:2:4": 3.0,
        "a second after 4:2:1": 3.0,
        "500 Mbit/s reserved": 3.0,
        "limit of 200 Mbit/s": 2.0,
    }
    for name, bound in bounds.items():
        ours = samples[f"ours: {name}"]
        peers = {BOUND: [bound] * len(ours), HTB: samples[f"{HTB}: {name}"]}
        rows.append(Row(f"{name}, off by", ours, peers, "%", "lower", {BOUND: 1.0}))
    for name in [name for name in samples if name.startswith("port: ")]:
        peers = {BOUND: [3.0] * len(samples[name])}
        label = f"at a machine's limit: {name.removeprefix('port: ')}, off by"
        rows.append(Row(label, samples[name], peers, "%", "lower", {BOUND: 1.0}))
    for name, targets in (("p50", {}), ("p99", {"alone": 1.5})):
        peers = {"alone": samples[f"ours: {name} alone"], HTB: samples[f"{HTB}: {name} beside"]}
        ours = samples[f"ours: {name} beside"]
        rows.append(Row(f"100 round trips/s beside three, {name}", ours, peers, "us", "lower", targets))
    peers = {HTB: samples[f"{HTB}: total"]}
    rows.append(Row("total of three", samples["ours: total"], peers, "Mbit/s", "higher"))
    peers = {"not arbitrated": samples["not arbitrated"]}
    rows.append(Row("the same without a bound", samples["arbitrated"], peers, "Gbit/s", "higher"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
