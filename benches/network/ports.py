"""What a frame costs the more ports there are: the switch's CPU time for those of one pair, and `decide()`.

    python -m benches.network.ports [--quick]

All but one pair of the ports send ten frames a second to one another, so that the switch knows them and looks
after them. CPU time, because frames a second on a small host are those that their sender can make. The bound
is what the logarithm of the number of ports would cost.
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
from collections.abc import Sequence
from contextlib import ExitStack
from math import log
from pathlib import Path

from benches._table import Row, read_options, report
from benches.disk.backends import build_vub

from nagaya import _core
from nagaya.plane import worker

TOP = Path(__file__).parents[2]
LOG = "as the logarithm"
FEW = "2 ports"
COUNTS = (2, 10, 100)
DECIDED = (2, 10, 100, 1000)
IDLE_RATE = 10  # frames a second of each other pair


TITLE = "Networks: a frame of 64 bytes among so many ports"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Measure, print the table, and return its rows."""
    options = read_options(__doc__, argv, rounds=(3, 1), seconds=(2.0, 1.0))
    vub = build_vub(TOP)
    costs: dict[int, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for ports in COUNTS:
            costs[ports].append(_pair(vub, ports, options.seconds))
    rows = [_cost(ports, costs) for ports in COUNTS] + _decided(options.seconds)
    return report(TITLE, rows, options)


def _cost(ports: int, costs: dict[int, list[float]]) -> Row:
    name, few = f"one pair, {ports} ports", costs[COUNTS[0]]
    if ports == COUNTS[0]:
        return Row(name, few, {}, "ns", "lower")
    bound = [cost * log(ports) / log(COUNTS[0]) for cost in few]
    return Row(name, costs[ports], {FEW: few, LOG: bound}, "ns", "lower", {LOG: 1.0})


def _pair(vub: Path, ports: int, seconds: float) -> float:
    """CPU time of the switch, ns, for each frame of the first pair."""
    with ExitStack() as stack:
        # Short: a socket's path must fit in 107 bytes.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="np", dir="/tmp")))
        plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
        stack.callback(plane.close)
        pairs = [[_port(plane, directory, number + side) for side in (1, 2)] for number in range(0, ports, 2)]
        for pair in pairs[1:]:
            stack.callback(_end, _frames(vub, pair, 3600, "--rate", str(IDLE_RATE)))
        switch = _worker(plane)
        measured, before = _frames(vub, pairs[0], seconds, "--warm-up", "0"), _cpu_ns(switch)
        told, _ = measured.communicate(timeout=seconds + 60)
        return (_cpu_ns(switch) - before) / float(json.loads(told)["received"])


def _worker(plane: _core.Plane) -> int:
    """The pid of the only one, once it runs."""
    while True:
        (switch,) = json.loads(plane.query())["workers"]
        if switch["pid"]:
            return int(switch["pid"])
        time.sleep(0.01)


def _cpu_ns(pid: int) -> int:
    """Of the only thread of a process (proc(5), schedstat)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def _port(plane: _core.Plane, directory: Path, number: int) -> Path:
    path = directory / f"{number}.sock"
    config = {
        "driver": "net",
        "id": f"m{number}/net0",
        "worker": "net",
        "network": "bench",
        "mac": _mac(number),
    }
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        plane.device_add(json.dumps(config), [listener.fileno()])
    return path


def _mac(number: int) -> str:
    return f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"


def _frames(vub: Path, pair: Sequence[Path], seconds: float, *more: str) -> subprocess.Popen[bytes]:
    ends = ["--socket", str(pair[0]), "--to", str(pair[1])]
    command = [str(vub), "frames", *ends, "--size", "64", "--seconds", str(seconds), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _decided(seconds: float) -> list[Row]:
    """One call of `decide()` in ns, by ports, and by connections that a port with rules has."""
    with tempfile.TemporaryDirectory() as home:
        command = ["cargo", "bench", "--quiet", "--locked", "--package", "nagaya-plane", "--bench", "switch"]
        criterion = ["--noplot", "--warm-up-time", "0.5", "--measurement-time", str(seconds)]
        subprocess.run(
            [*command, "--", *criterion],
            cwd=TOP,
            env=os.environ | {"CRITERION_HOME": home},
            stdout=subprocess.DEVNULL,
            check=True,
        )

        def cost(what: str) -> list[float]:
            estimates = json.loads((Path(home) / "decide" / what / "new" / "estimates.json").read_text())
            return [estimates["median"]["point_estimate"]]

        few, one = cost(f"ports/{DECIDED[0]}"), cost("connections/1")
        rows = [Row(f"decide(), {FEW}", few, {}, "ns", "lower")]
        for ports in DECIDED[1:]:
            bound = [few[0] * log(ports) / log(DECIDED[0])]
            peers = {FEW: few, LOG: bound}
            rows.append(
                Row(f"decide(), {ports} ports", cost(f"ports/{ports}"), peers, "ns", "lower", {LOG: 1.0})
            )
        rows.append(Row("decide(), rules, 1 connection", one, {}, "ns", "lower"))
        many = cost("connections/10000")
        rows.append(Row("decide(), rules, 10,000 connections", many, {"1 connection": one}, "ns", "lower"))
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
