"""Who gets how much of a device that several want: on our plane, and beside qemu-storage-daemon.

    python -m benches.arbitration.run [--quick] [--json FILE]

4 KiB reads, random but for one row, by vhost-user clients that sleep until they are called: on a simulated
device with known service times, and on a real file, one for all. The first seconds, in which clients connect
and the window is found, are not counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benches._table import Row, report
from benches.arbitration.machines import (
    SLICE_MS,
    Asks,
    Crowd,
    Got,
    our_plane,
    qemu_storage_daemons,
)
from benches.disk.backends import benched_file, build_vub

MIB = 1 << 20
DEVICES = ("simulated", "file")
BOUND = "the bound"
QSD = {"qsd, one": True, "qsd, one each": False}

# How many slices make a second.
SECOND = 1000 // SLICE_MS

# A latency-sensitive machine and its neighbours.
QUIET = Asks(depth=1, rate=100)
BUSY = {name: Asks(depth=32) for name in ("b1", "b2", "b3")}

Samples = dict[str, list[float]]


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = _options(argv)
    samples: Samples = defaultdict(list)
    with ExitStack() as stack:
        # Short: a vhost-user socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        path = options.file or directory / "disk.raw"
        file = stack.enter_context(benched_file(path, options.size_mib * MIB))
        crowd = Crowd(build_vub(Path(__file__).parents[2]), options.seconds, options.warm_up)
        for _ in range(options.rounds):
            for where in options.where:
                device = file if where == "file" else None
                _weights(samples, where, crowd, directory, device)
                _reservation(samples, where, crowd, directory, device)
                _limit(samples, where, crowd, directory, device)
                _latency(samples, where, crowd, directory, device)
                _neighbours(samples, where, crowd, directory, device)
            if "file" in options.where:
                _peers(samples, crowd, directory, file)
    rows = _rows(samples)
    title = "Arbitration, 4 KiB reads"
    return report(title, rows, options)


def _weights(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """Shares 1:2:4, and 4:2:1 from the middle on: measured from a second later."""
    names = ("w1", "w2", "w4")
    with our_plane(directory, file) as plane:
        sockets = {name: plane.add(name, weight=int(name[1]) * 100) for name in names}

        def turn() -> None:
            for name, weight in zip(names, (400, 200, 100), strict=True):
                plane.share(name, weight=weight)

        half = int(crowd.seconds / 2) * SECOND
        got = _during(
            crowd, half / SECOND, turn, lambda: crowd.ask(sockets, {name: Asks() for name in names})
        )
    before = [sum(got[name].slices[:half]) for name in names]
    after = [sum(got[name].slices[half + SECOND :]) for name in names]
    samples[f"{where}: weights 1:2:4"].append(_off(before, (1, 2, 4)))
    samples[f"{where}: a second after 4:2:1"].append(_off(after, (4, 2, 1)))


def _reservation(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """Half of the device, which a weight of 1 would never get, beside seven of weight 1000."""
    reserved = 4000 if file is None else 20_000
    with our_plane(directory, file) as plane:
        sockets = {"r": plane.add("r", weight=1, reservation_iops=reserved)}
        sockets |= {f"n{number}": plane.add(f"n{number}", weight=1000) for number in range(7)}
        got = crowd.ask(sockets, {name: Asks() for name in sockets})
    short = max(0.0, 1 - got["r"].iops / reserved) * 100
    samples[f"{where}: {reserved:,} IOPS reserved"].append(short)


def _limit(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """The busiest second of a machine with a limit, at any tenth of a second."""
    limit = 1000
    with our_plane(directory, file) as plane:
        sockets = {"l": plane.add("l", limit_iops=limit), "n": plane.add("n")}
        slices = crowd.ask(sockets, {"l": Asks(), "n": Asks(depth=4)})["l"].slices
    seconds = [sum(slices[at : at + SECOND]) for at in range(len(slices) - SECOND)]
    samples[f"{where}: limit of {limit:,} IOPS"].append((max(seconds) / limit - 1) * 100)


def _latency(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """100 requests a second beside three at depth 32; and as many of one, whom nobody arbitrates."""
    with our_plane(directory, file) as plane:
        sockets = {name: plane.add(name) for name in ("q", *BUSY)}
        alone = crowd.ask(sockets, {"q": QUIET})
        beside = crowd.ask(sockets, {"q": QUIET, **BUSY})
        free = crowd.ask(sockets, {"b1": Asks(depth=97)})
        _note(samples, f"{where}: ours", alone, beside)
        samples[f"{where}: total of one"].append(free["b1"].iops)
        plane.share("q", latency_p99_us=round(alone["q"].p99_us * 1.4))
        _note(samples, f"{where}: ours, objective", alone, crowd.ask(sockets, {"q": QUIET, **BUSY}))


def _neighbours(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """Two machines of one weight; one reads block after block, which are merged while they wait."""
    with our_plane(directory, file) as plane:
        sockets = {name: plane.add(name) for name in ("s", "r")}
        random = crowd.ask(sockets, {"s": Asks(), "r": Asks()})
        sequential = crowd.ask(sockets, {"s": Asks(order="sequential"), "r": Asks()})
    for name in ("s", "r"):
        samples[f"{where}: {name} random"].append(random[name].iops)
        samples[f"{where}: {name} beside"].append(sequential[name].iops)


def _peers(samples: Samples, crowd: Crowd, directory: Path, file: Path) -> None:
    for peer, one in QSD.items():
        with qemu_storage_daemons(directory, file, ["q", *BUSY], one) as sockets:
            alone = crowd.ask(sockets, {"q": QUIET})
            _note(samples, f"file: {peer}", alone, crowd.ask(sockets, {"q": QUIET, **BUSY}))
            got = crowd.ask(sockets, dict(BUSY))
            samples[f"file: weights, {peer}"].append(_off([got[name].iops for name in BUSY], (1, 2, 4)))


def _note(samples: Samples, who: str, alone: Mapping[str, Got], beside: Mapping[str, Got]) -> None:
    samples[f"{who} alone"].append(alone["q"].p99_us)
    samples[f"{who} beside"].append(beside["q"].p99_us)
    samples[f"{who} ratio"].append(beside["q"].p99_us / alone["q"].p99_us)
    samples[f"{who} total"].append(sum(got.iops for got in beside.values()))


def _off(got: Sequence[float], shares: Sequence[int]) -> float:
    """How far the worst is from its share, in percent."""
    total, parts = sum(got), sum(shares)
    return max(abs(one / total * parts / share - 1) for one, share in zip(got, shares, strict=True)) * 100


def _during(
    crowd: Crowd, after: float, act: Callable[[], None], ask: Callable[[], dict[str, Got]]
) -> dict[str, Got]:
    """`ask`, and do something so many seconds after the warm-up."""
    timer = threading.Timer(crowd.warm_up + after, act)
    timer.start()
    try:
        return ask()
    finally:
        timer.cancel()
        timer.join()


def _rows(samples: Samples) -> list[Row]:
    rows = []
    bounds = {"weights 1:2:4": 3.0, "a second after 4:2:1": 3.0, "IOPS reserved": 3.0, "limit of": 2.0}
    for name, bound in bounds.items():
        for key in [key for key in samples if name in key and "qsd" not in key]:
            peers = {BOUND: [bound] * len(samples[key])}
            if key == "file: weights 1:2:4":
                peers |= {peer: samples[f"file: weights, {peer}"] for peer in QSD}
            rows.append(Row(f"{key}, off by", samples[key], peers, "%", "lower", {BOUND: 1.0}))
    for where in [where for where in DEVICES if f"{where}: total of one" in samples]:
        for ours in ("ours", "ours, objective"):
            rows += _latency_rows(samples, where, ours, list(QSD) if where == "file" else [])
    for where in [where for where in DEVICES if f"{where}: s beside" in samples]:
        for name, label in {"s": "a sequential reader", "r": "its neighbour"}.items():
            peers = {"both random": samples[f"{where}: {name} random"]}
            rows.append(Row(f"{where}: {label}", samples[f"{where}: {name} beside"], peers, "IOPS", "higher"))
    return rows


def _latency_rows(samples: Samples, where: str, ours: str, peers: Sequence[str]) -> list[Row]:
    def theirs(what: str) -> Samples:
        return {peer: samples[f"{where}: {peer} {what}"] for peer in peers}

    label = f"{where}{ours.removeprefix('ours')}: depth 1 beside 3 x 32"
    key = f"{where}: {ours}"
    ratios, totals = samples[f"{key} ratio"], samples[f"{key} total"]
    bound = {BOUND: [1.5] * len(ratios)}
    free = {"one at depth 97": samples[f"{where}: total of one"]}
    return [
        Row(f"{label}, p99 alone", samples[f"{key} alone"], theirs("alone"), "us", "lower"),
        Row(f"{label}, p99", samples[f"{key} beside"], theirs("beside"), "us", "lower"),
        Row(f"{label}, p99 to alone", ratios, bound | theirs("ratio"), "x", "lower", {BOUND: 1.0}),
        Row(f"{label}, total", totals, free | theirs("total"), "IOPS", "higher", {"one at depth 97": 0.95}),
    ]


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.arbitration.run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="one round: a look, not a figure")
    parser.add_argument("--where", nargs="+", choices=DEVICES, default=DEVICES)
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one measurement")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before it")
    parser.add_argument("--size-mib", type=int, default=2048, help="of the file")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
