"""Packets: from one raw guest to another through one worker, beside DPDK's vhost backend.

    python -m benches.network.packets [--quick] [--rounds N] [--seconds T] [--json FILE]

The client, `vub frames`, is both guests and the same for all; it runs on one CPU, the backend on another. It
sends UDP as fast as frames are taken, or at a rate, each frame awaited by its interrupt. Ours looks up and
checks who sends, and where a row says so tracks connections for a security group; testpmd passes frames on.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benches._table import Row, read_options, report
from benches.disk.backends import build_vub, cpu_seconds
from benches.network._dpdk import testpmd

from nagaya import _core
from nagaya.plane import worker

DPDK = "DPDK vhost"
SIZES = (64, 1500)
RATES = (1_000, 10_000)
PROMISED = 0.8  # of DPDK's packets, on one CPU

BACKEND_CPU, CLIENT_CPU = 0, 1

ALLOWED = [
    {"direction": direction, "protocol": "udp", "ports": [9, 9], "peer": "any"} for direction in ("in", "out")
]


@dataclass(frozen=True, slots=True)
class Load:
    """Frames of `size` bytes, `rate` a second; 0 is as many as go."""

    size: int
    rate: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement."""

    rate: float  # frames that arrived, a second
    cpu: float  # CPU seconds of the backend for a million of them
    p50_us: float  # from kick to arrival, if sent at a rate


@dataclass(slots=True)
class Target:
    """Two ports that are joined, and whose CPU time it is."""

    vub: Path
    sockets: tuple[Path, Path]
    pid: int
    awake: Any = field(default=nullcontext)

    def measure(self, load: Load, seconds: float) -> Sample:
        """Put the load on it; its warm-up is not counted as CPU time, but is as long for all."""
        awake: AbstractContextManager[None] = self.awake()
        command = ["taskset", "-c", str(CLIENT_CPU), str(self.vub), "frames", "--warm-up", "0"]
        command += ["--socket", str(self.sockets[0]), "--to", str(self.sockets[1])]
        command += ["--size", str(load.size), "--rate", str(load.rate), "--seconds", str(seconds)]
        with awake:
            before = cpu_seconds(self.pid)
            output = subprocess.run(command, check=True, capture_output=True, timeout=seconds + 30).stdout
            cpu = cpu_seconds(self.pid) - before
        result = json.loads(output)
        if not result["received"]:
            raise RuntimeError(f"no frame came through: {result}")
        late = result["latency_us"]["p50"]
        return Sample(result["packets_per_second"], cpu * 1e6 / result["received"], late)


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and write the JSON if asked to. Returns the rows."""
    options = read_options(__doc__, argv, rounds=(5, 3), seconds=(2.0, 0.5))
    loads = [*(Load(size, 0) for size in SIZES), *(Load(64, rate) for rate in RATES)]
    samples: dict[tuple[Load, str], list[Sample]] = defaultdict(list)
    with ExitStack() as stack:
        # Short: a vhost-user socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ng", dir="/tmp")))
        targets = _targets(directory, stack)
        for turn, load in product(range(options.rounds), loads):
            names = list(targets)
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[load, name].append(targets[name].measure(load, options.seconds))
    rows = _rows(samples)
    title = "Packets from guest to guest, one CPU"
    return report(title, rows, options)


def _targets(directory: Path, stack: ExitStack) -> dict[str, Target]:
    vub = build_vub(Path(__file__).parents[2])
    plane = stack.enter_context(_plane())
    ours = partial(_pair, plane, directory)
    peer = stack.enter_context(testpmd(directory, BACKEND_CPU, CLIENT_CPU))
    return {
        "ours": Target(vub, *ours("plain", {})),
        "security": Target(vub, *ours("secured", {"security": ALLOWED})),
        DPDK: Target(vub, peer.sockets, peer.pid, peer.awake),
    }


@contextmanager
def _plane() -> Iterator[_core.Plane]:
    plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
    try:
        yield plane
    finally:
        plane.close()


def _pair(
    plane: _core.Plane, directory: Path, network: str, rules: dict[str, Any]
) -> tuple[tuple[Path, Path], int]:
    """Two ports of a network of their own; their sockets and the pid of their worker, which is pinned."""
    sockets = (directory / f"{network}1.sock", directory / f"{network}2.sock")
    for number, path in enumerate(sockets, 1):
        config = {
            "driver": "net", "id": f"{network}/net{number}", "worker": f"net-{network}", "network": network,
            "mac": f"52:54:00:00:00:0{number}", "rules": {"addresses": [f"10.0.0.{number}"], **rules},
        }  # fmt: skip
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            plane.device_add(json.dumps(config), [listener.fileno()])
    pid = _worker_pid(plane, f"net-{network}")
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {BACKEND_CPU})
    return sockets, pid


def _worker_pid(plane: _core.Plane, name: str) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for served in json.loads(plane.query())["workers"]:
            if served["name"] == name and served["pid"]:
                return int(served["pid"])
        time.sleep(0.01)
    raise RuntimeError(f"no worker {name} after 10 s")


def _rows(samples: dict[tuple[Load, str], list[Sample]]) -> list[Row]:
    def row(load: Load, name: str, what: str, unit: str, promise: float | None = None) -> Row:
        ours, peer = ([getattr(one, what) for one in samples[load, who]] for who in (name, DPDK))
        secured = ", security group" if name == "security" else ""
        title = (
            f"{load.size} bytes" if not load.rate else f"{load.rate:,}/s, {'CPU' if what == 'cpu' else 'p50'}"
        )
        targets = {} if promise is None else {DPDK: promise}
        better: Literal["lower", "higher"] = "higher" if what == "rate" else "lower"
        return Row(f"{title}{secured}", ours, {DPDK: peer}, unit, better, targets)

    fast = [
        row(Load(size, 0), name, "rate", "packets/s", PROMISED)
        for size in SIZES
        for name in ("ours", "security")
    ]
    cheap = [row(Load(64, rate), "ours", "cpu", "s/million", 1.0) for rate in RATES]
    late = [row(Load(64, rate), "ours", "p50_us", "us") for rate in RATES]
    return [*fast, *cheap, *late]


if __name__ == "__main__":
    main(sys.argv[1:])
