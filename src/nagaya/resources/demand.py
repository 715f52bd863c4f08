"""What a machine asks of the host over time: samples, the percentiles of an hour, and patterns of its disks.

A sample is an average of `INTERVAL` seconds. The samples of an hour are all kept until it is over, so its
percentiles are exact; after that only they are left. A pattern is enough to replay a disk's requests
(docs/capacity.md, "What if").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

INTERVAL = 10  # s between samples
HOUR = 3600
SAMPLES = HOUR // INTERVAL  # that are kept of a machine
REMEMBERED = 10_000  # requests of a device under one load that count beside new ones
PERIODS = 48  # kinds of busy periods that are kept of a disk: those with the most requests

_SUMS = ("count", "gap_us", "span_us", "requests", "depth", "think_us")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a machine used on average for `INTERVAL` seconds up to `at` (Unix time)."""

    at: int
    cpu: int  # thousandths of a CPU
    memory: int  # bytes of the host
    iops: int
    disk: int  # bytes/s, read and written
    received: int  # bytes/s, of all NICs
    sent: int


METRICS = tuple(field.name for field in fields(Sample) if field.name != "at")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Half of the samples are at most `p50`, and so on."""

    p50: int
    p90: int
    p99: int
    max: int


@dataclass(frozen=True, slots=True)
class Hour:
    """What a machine asked for in an hour: the `hour`th since 1970; `samples` tells how much of it."""

    hour: int
    samples: int
    quantiles: Mapping[str, Quantiles]  # of each of `METRICS`


def quantiles(values: Sequence[int]) -> Quantiles:
    """Of at least one value, by the nearest rank: always one of the values."""
    ordered = sorted(values)

    def rank(part: float) -> int:
        return ordered[max(1, math.ceil(part * len(ordered))) - 1]

    return Quantiles(rank(0.5), rank(0.9), rank(0.99), ordered[-1])


def hour_of(samples: Sequence[Sample]) -> Hour:
    """The hour of these samples, of which there is at least one, all of the same hour."""
    found = {metric: quantiles([getattr(sample, metric) for sample in samples]) for metric in METRICS}
    return Hour(samples[0].at // HOUR, len(samples), found)


def hour_to_json(hour: Hour) -> dict[str, Any]:
    """As it is stored: a list for each metric."""
    return {
        "samples": hour.samples,
        **{name: [one.p50, one.p90, one.p99, one.max] for name, one in hour.quantiles.items()},
    }


def hour_from_json(hour: int, body: Mapping[str, Any]) -> Hour:
    """The reverse; metrics that an older version did not know are 0."""
    found = {name: Quantiles(*body.get(name, (0, 0, 0, 0))) for name in METRICS}
    return Hour(hour, int(body["samples"]), found)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counters of a machine at one moment; rates are the difference of two of these."""

    at: float  # s of a clock that only runs forward
    cpu_us: int
    memory: int
    requests: int
    disk: int
    received: int
    sent: int


def between(before: Totals, after: Totals, at: int) -> Sample | None:
    """The sample of the time between two moments, or None if a counter began anew meanwhile."""
    seconds = after.at - before.at
    cpu = after.cpu_us - before.cpu_us
    others = [
        after.requests - before.requests,
        after.disk - before.disk,
        after.received - before.received,
        after.sent - before.sent,
    ]
    if seconds <= 0 or min(cpu, *others) < 0:
        return None
    return Sample(at, round(cpu / seconds / 1000), after.memory, *(round(one / seconds) for one in others))


def merged(before: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, Any]:
    """Two recordings of one disk as one. Bounded: of busy periods the `PERIODS` with the most requests.

    The p99 is the mean of both, by their requests: latencies themselves are not kept.
    """
    if before is None:
        before = {"recorded_us": 0, "mix": [], "periods": [], "squares": [0, 0], "p99_us": 0}
    periods = _added(before["periods"], more["periods"], lambda one: one["number"], _SUMS)
    kept = sorted(sorted(periods, key=lambda one: -one["requests"])[:PERIODS], key=lambda one: one["number"])
    return {
        "id": more["id"],
        "recorded_us": before["recorded_us"] + more["recorded_us"],
        "mix": _added(before["mix"], more["mix"], _class, ("count", "bytes")),
        "periods": kept,
        "squares": [one + other for one, other in zip(before["squares"], more["squares"], strict=True)],
        "p99_us": _mean_p99(before, more),
    }


def merged_cells(before: Iterable[Mapping[str, Any]], more: Iterable[Mapping[str, Any]]) -> list[Any]:
    """What is known of a device: what it had shown before and has just shown, by their requests.

    Under one load no more than the last `REMEMBERED` requests count before the new ones.
    """
    found = {one["number"]: one for one in before}
    for one in more:
        known = found.get(one["number"])
        found[one["number"]] = one if known is None else _added_cell(known, one)
    return [found[number] for number in sorted(found)]


def _added_cell(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    old, new = min(before["count"], REMEMBERED), more["count"]
    part: float = old / max(1, old + new)

    def mean(one: float, other: float) -> float:
        return one * part + other * (1 - part)

    times = zip(before["times_ns"], more["times_ns"], strict=True)
    return {
        **more,
        "count": old + new,
        "bytes": round(mean(before["bytes"], more["bytes"])),
        "load": mean(before["load"], more["load"]),
        "times_ns": [round(mean(one, other)) for one, other in times],
    }


def _mean_p99(*patterns: Mapping[str, Any]) -> float:
    counts: list[int] = [sum(row["count"] for row in one["mix"]) for one in patterns]
    values: list[float] = [one["p99_us"] for one in patterns]
    return sum(count * value for count, value in zip(counts, values, strict=True)) / max(1, sum(counts))


def _class(one: Mapping[str, Any]) -> tuple[str, int]:
    each = one["bytes"] // max(1, one["count"]) if one["kind"] in ("read", "write") else 0
    return one["kind"], (max(each, 4096) // 4096).bit_length()


def _added(before: Any, more: Any, key: Any, sums: Sequence[str]) -> list[Any]:
    found: dict[Any, dict[str, Any]] = {}
    for one in (*before, *more):
        known = found.setdefault(key(one), {**one, **dict.fromkeys(sums, 0)})
        for name in sums:
            known[name] += one[name]
    return list(found.values())
