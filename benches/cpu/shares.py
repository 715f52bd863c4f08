"""CPU shares: what guests that want all of one CPU get, by weight, by limit and by reservation; idle ones.

The machines are User-mode Linux, pinned to one CPU together, measured by their control groups. The peer is
what the kernel makes of the same weights and the same limit for plain busy loops of the host, without us.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from benches._table import Row, read_options, report
from benches.guest._nagaya import own_nagaya

from nagaya.resources.cgroups import Cgroup, Limits, find_base, remove_base
from nagaya.sdk import Client, Machine

WEIGHTS = {"w1": 100, "w2": 200, "w4": 400}
LIMIT = 0.5
RESERVED = {
    "reserved": 0.6,
    "heavy": 0.4,
}  # what they are to have: the one reserves, the other has the weight
SETTLE_S = 1.0
BURN = "while :; do :; done"


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    options = read_options(__doc__, argv, rounds=(5, 2), seconds=(4.0, 2.0))
    cpu = max(os.sched_getaffinity(0))
    with own_nagaya() as client:
        rows = _measure(client, cpu, options.rounds, options.seconds)
    title = f"CPU shares on one CPU, {options.rounds} rounds of {options.seconds:g} s"
    return report(title, rows, options)


def _measure(client: Client, cpu: int, rounds: int, seconds: float) -> list[Row]:
    weights: list[float] = []
    weights_peer: list[float] = []
    limited: list[float] = []
    limited_peer: list[float] = []
    reserved: list[float] = []
    wanted = {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}
    for _ in range(rounds):
        with _machines(client, cpu, {name: {"weight": one} for name, one in WEIGHTS.items()}):
            weights.append(_error(_used(client, seconds), wanted))
        with _loops(cpu, {name: Limits(cpu_weight=one) for name, one in WEIGHTS.items()}) as used:
            weights_peer.append(_error(_over(used, seconds)[0], wanted))
        with _machines(
            client, cpu, {"half": {"limit": LIMIT, "reservation": LIMIT}, **_promised(cpu)}, idle=2
        ):
            limited.append(abs(_rate(lambda: _counters(client)["half"], seconds) / LIMIT - 1) * 100)
        with _loops(cpu, {"half": Limits(cpu_limit=LIMIT)}) as used:
            limited_peer.append(abs(_rate(lambda: used()["half"], seconds) / LIMIT - 1) * 100)
        knobs: dict[str, dict[str, object]] = {
            "reserved": {"weight": 10, "reservation": RESERVED["reserved"]},
            "heavy": {"weight": 900},
        }
        with _machines(client, cpu, knobs):
            reserved.append(_error(_used(client, seconds), RESERVED))
    idle = _idle(client, cpu, rounds, seconds)
    three, two = {"the bound": [3.0] * rounds}, {"the bound": [2.0] * rounds}
    bound = {"the bound": 1.0}
    return [
        Row(
            "weights 1:2:4, the worst share's error",
            weights,
            {"host": weights_peer, **three},
            "%",
            "lower",
            bound,
        ),
        Row("limit of 50%, error", limited, {"host": limited_peer, **two}, "%", "lower", bound),
        Row("0.6 reserved, weights 10 and 900, error", reserved, three, "%", "lower", bound),
        Row("2 idle machines", idle, {"the bound": [1.0] * rounds}, "% of a CPU", "lower", bound),
    ]


@contextmanager
def _machines(
    client: Client, cpu: int, knobs: Mapping[str, Mapping[str, object]], *, idle: int = 0
) -> Iterator[list[Machine]]:
    """Machines on one CPU, unless they are pinned elsewhere; but for the last `idle` they want all of it."""
    machines = []
    try:
        for name, cpu_knobs in knobs.items():
            spec = {"name": name, "memory": "64MiB", "disks": [{"image": "busybox"}], "nics": []}
            made = client.machines.create(spec | {"cpu": {"pin": str(cpu), **cpu_knobs}}, start=True)
            machines.append(made)
        for machine in machines:
            machine.exec(["true"], wait=30)
        for machine in machines[: len(machines) - idle]:
            machine.exec(["sh", "-c", f"{BURN} >/dev/null 2>&1 </dev/null &"], wait=30)
        time.sleep(SETTLE_S)
        yield machines
    finally:
        for machine in machines:
            machine.delete(force=True)


def _promised(cpu: int) -> Mapping[str, Mapping[str, object]]:
    """Idle machines that reserve what is left, so that the host's own work does not decide what there is."""
    other = min(os.sched_getaffinity(0) - {cpu}, default=cpu)
    rest = {"rest": {"reservation": 0.4}}
    return rest if other == cpu else rest | {"far": {"reservation": 0.95, "pin": str(other)}}


@contextmanager
def _loops(cpu: int, limits: Mapping[str, Limits]) -> Iterator[Callable[[], Mapping[str, int]]]:
    """Busy loops of the host in control groups of their own; yields their CPU time, in microseconds."""
    base = find_base(f"bench-{os.getpid()}")
    groups = {name: Cgroup.below(base, name) for name in limits}
    loops = []
    try:
        for name, group in groups.items():
            group.create(limits[name])
            join = "; ".join(f"echo 0 > {file}" for file in group.tasks_files)
            if group.v2:
                join += f"; echo 0 > {group.v2}/cgroup.procs"
            loops.append(subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", f"{join}; {BURN}"]))
        time.sleep(SETTLE_S)
        yield lambda: {name: group.usage_us() or 0 for name, group in groups.items()}
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        for group in groups.values():
            group.remove()
        remove_base(base)


def _counters(client: Client) -> Mapping[str, int]:
    return {one.name: one.cpu_us or 0 for one in client.usage().machines}


def _used(client: Client, seconds: float) -> Mapping[str, float]:
    return _over(lambda: _counters(client), seconds)[0]


def _over(read: Callable[[], Mapping[str, int]], seconds: float) -> tuple[Mapping[str, float], float]:
    """What is used in some seconds, in microseconds, and how long they were."""
    began, before = time.monotonic(), read()
    time.sleep(seconds)
    took, after = time.monotonic() - began, read()
    return {name: after[name] - before[name] for name in before}, took


def _rate(read: Callable[[], int], seconds: float) -> float:
    """CPUs used."""
    used, took = _over(lambda: {"": read()}, seconds)
    return used[""] / 1e6 / took


def _error(used: Mapping[str, float], wanted: Mapping[str, float]) -> float:
    """By how many percent of what it should have had the worst one is off."""
    total = sum(used.values())
    return max(abs(used[name] / total / part - 1) for name, part in wanted.items()) * 100


def _idle(client: Client, cpu: int, rounds: int, seconds: float) -> list[float]:
    """The CPU time that two idle machines use, in percent of a CPU."""
    found = []
    for _ in range(rounds):
        with _machines(client, cpu, {"idle0": {}, "idle1": {}}, idle=2):
            time.sleep(SETTLE_S)  # the guest agents have just been talked to
            found.append(_rate(lambda: sum(_counters(client).values()), seconds) * 100)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
