"""What is asked of the disks of the host and how they answer, and what would happen with more of it.

Cells and patterns are the core's own (`_core.pyi`, `query_demand`): they are stored, added up and given back
to it, so here they are what JSON makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nagaya.errors import UsageError
from nagaya.plane.shares import ShareNode

Cell = Mapping[str, Any]
Pattern = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerDemand:
    """One disk of the host: how it answers, and what each virtual disk asks of it."""

    worker: str
    cells: tuple[Cell, ...]
    patterns: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Device:
    """How a disk of the host answers, as measured; capacities are 0 while unknown."""

    cells: tuple[Cell, ...]
    capacity_iops: int = 0
    capacity: int = 0  # bytes/s


@dataclass(frozen=True, slots=True)
class Got:
    """What a virtual disk got in simulated time: rates per second, latencies from request to answer."""

    id: str
    iops: float
    bytes: float
    mean_us: float
    p50_us: float
    p99_us: float
    waited_us: float  # of the mean, in the arbiter
    under_way: float  # requests at any time, on average


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would happen, and how sure that is."""

    leaves: tuple[Got, ...]
    window: int
    seconds: float
    load: float  # the most at the device, in requests of 4 KiB
    known_load: float  # the most when it was measured
    guessed: float  # part of the requests that met more than that


def demand_from_json(row: Mapping[str, Any]) -> WorkerDemand:
    """One row of the answer to `query-demand`."""
    return WorkerDemand(str(row["worker"]), tuple(row["cells"]), tuple(row["patterns"]))


def simulate(
    device: Device,
    patterns: Sequence[Pattern],
    nodes: Sequence[ShareNode] = (),
    *,
    seconds: float = 5.0,
    warm_up: float = 2.0,
    seed: int = 1,
) -> Outcome:
    """Replay `patterns` on `device`. Takes seconds of a CPU, without the GIL. Raises `UsageError`."""
    from nagaya import _core  # the daemon starts without it

    scenario = {
        "cells": device.cells,
        "capacity_iops": device.capacity_iops,
        "capacity": device.capacity,
        "nodes": [asdict(node) for node in nodes],
        "patterns": patterns,
        "seconds": seconds,
        "warm_up": warm_up,
        "seed": seed,
    }
    try:
        found = json.loads(_core.simulate(json.dumps(scenario)))
    except ValueError as error:
        raise UsageError(f"this cannot be simulated: {error}") from error
    leaves = tuple(Got(**leaf) for leaf in found.pop("leaves"))
    return Outcome(leaves, **found)
