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
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
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

# The warm-up where no window is to be found: the clients connect.
CONNECTED_S = 0.5

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
        size = options.size_mib * MIB if "file" in options.where else 0
        file = stack.enter_context(benched_file(path, size))
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
    asks = {"l": Asks(), "n": Asks(depth=4)}
    with our_plane(directory, file) as plane:
        sockets = {"l": plane.add("l", limit_iops=limit), "n": plane.add("n")}
        slices = crowd.ask(sockets, asks, warm_up=CONNECTED_S)["l"].slices
    seconds = [sum(slices[at : at + SECOND]) for at in range(len(slices) - SECOND)]
    samples[f"{where}: limit of {limit:,} IOPS"].append((max(seconds) / limit - 1) * 100)


def _latency(samples: Samples, where: str, crowd: Crowd, directory: Path, file: Path | None) -> None:
    """100 requests a second beside three at depth 32; and as many of one, whom nobody arbitrates."""
    with our_plane(directory, file) as plane:
        sockets = {name: plane.add(name) for name in ("q", *BUSY)}
        alone = crowd.ask(sockets, {"q": QUIET}, warm_up=CONNECTED_S)
        plane.waited_us("q")
        waited_s, start = plane.cpu_wait_seconds(), time.monotonic()
        beside = crowd.ask(sockets, {"q": QUIET, **BUSY})
        share = (plane.cpu_wait_seconds() - waited_s) / (time.monotonic() - start)
        samples[f"{where}: for others in the arbiter"].append(plane.waited_us("q"))
        samples[f"{where}: its client for a CPU"].append(beside["q"].cpu_wait_us)
        samples[f"{where}: worker for a CPU"].append(share * 100)
        free = crowd.ask(sockets, {"b1": Asks(depth=97)}, warm_up=CONNECTED_S)
        _note(samples, f"{where}: ours", alone, beside)
        samples[f"{where}: total of one"].append(free["b1"].iops)
        plane.share("q", latency_p99_us=round(alone["q"].p99_us * 1.4))
        _note(samples, f"{where}: ours, objective", alone, crowd.ask(sockets, {"q": QUIET, **BUSY}))
    if file is not None:
        _latency_without_cpu_waits(samples, crowd, directory, file)


def _latency_without_cpu_waits(samples: Samples, crowd: Crowd, directory: Path, file: Path) -> None:
    """The same, but worker and quiet machine never wait for a CPU: what is left is arbiter and disk."""
    quiet = replace(QUIET, first=True)
    with our_plane(directory, file) as plane:
        sockets = {name: plane.add(name) for name in ("q", *BUSY)}
        plane.first_at_the_cpus()
        alone = crowd.ask(sockets, {"q": quiet}, warm_up=CONNECTED_S)
        _note(samples, "file: first", alone, crowd.ask(sockets, {"q": quiet, **BUSY}))


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
            alone, got = (
                crowd.ask(sockets, asks, warm_up=CONNECTED_S) for asks in ({"q": QUIET}, {"q": QUIET, **BUSY})
            )
            _note(samples, f"file: {peer}", alone, got)
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
        rows += _cpu_rows(samples, where)
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


def _cpu_rows(samples: Samples, where: str) -> list[Row]:
    """What of the quiet machine's time is the arbiter's, and what the CPUs'."""
    each = [f"{where}: {what}" for what in ("for others in the arbiter", "its client for a CPU")]
    rows = [
        Row(f"{key.replace(': ', ': depth 1 waits ')}", samples[key], {}, "us each", "lower") for key in each
    ]
    rows.append(
        Row(f"{where}: the worker waits for a CPU", samples[f"{where}: worker for a CPU"], {}, "%", "lower")
    )
    if first := samples.get(f"{where}: first ratio"):
        beside = {BOUND: [1.5] * len(first)}
        label = f"{where}, it and the worker first at the CPUs"
        rows.append(Row(f"{label}, p99 alone", samples[f"{where}: first alone"], {}, "us", "lower"))
        rows.append(Row(f"{label}, p99", samples[f"{where}: first beside"], {}, "us", "lower"))
        rows.append(Row(f"{label}, p99 to alone", first, beside, "x", "lower"))
    return rows


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.arbitration.run", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of 4 s after 2 s: a look, not a figure"
    )
    parser.add_argument("--where", nargs="+", choices=DEVICES, default=DEVICES)
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of one measurement, default 6")
    parser.add_argument("--warm-up", type=float, help="seconds before it, default 3")
    parser.add_argument("--size-mib", type=int, default=1024, help="of the file")
    parser.add_argument("--file", type=Path, help="use and keep this file if it has the size")
    parser.add_argument("--json", type=Path, help="write all samples here")
    options = parser.parse_args(argv)
    rounds, seconds, warm_up = (1, 4.0, 2.0) if options.quick else (3, 6.0, 3.0)
    options.rounds = options.rounds or rounds
    options.seconds = options.seconds or seconds
    options.warm_up = warm_up if options.warm_up is None else options.warm_up
    return options


if __name__ == "__main__":
    main(sys.argv[1:])
