from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources import demand
from nagaya.resources.demand import PERIODS, Sample, Totals, between, hour_of, merged, merged_cells, quantiles

COUNT = st.integers(0, 2**40)


@given(st.lists(COUNT, min_size=1, max_size=400))
def test_so_many_samples_are_at_most_the_percentile(values: list[int]) -> None:
    found = quantiles(values)
    for part, value in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99), (1.0, found.max)):
        assert value in values
        assert sum(one <= value for one in values) >= math.ceil(part * len(values))
        assert sum(one < value for one in values) < max(1, math.ceil(part * len(values)))


@given(st.lists(st.tuples(COUNT, COUNT, COUNT), min_size=1, max_size=360))
def test_an_hour_survives_json(values: list[tuple[int, int, int]]) -> None:
    hour = hour_of([Sample(7200, cpu, memory, iops, 1, 2, 3) for cpu, memory, iops in values])
    assert demand.hour_from_json(2, demand.hour_to_json(hour)) == hour


def test_a_counter_that_began_anew_makes_no_sample() -> None:
    before, after = Totals(10.0, 5_000_000, 7, 100, 0, 0, 0), Totals(20.0, 10_000_000, 9, 1100, 40, 50, 60)
    assert between(before, after, 77) == Sample(77, 500, 9, 100, 4, 5, 6)
    assert between(after, before, 77) is None
    assert between(before, before, 77) is None


def _pattern(rows: list[tuple[int, int]]) -> dict[str, Any]:
    sums = {"gap_us": 10, "span_us": 20, "depth": 1, "think_us": 0}
    return {
        "id": "m1/disk0",
        "recorded_us": 1000,
        "mix": [{"kind": "read", "count": 3, "bytes": 12288}],
        "periods": [
            {"number": number, "count": 1, "requests": requests, **sums} for number, requests in rows
        ],
        "squares": [1.0, 2.0],
        "latency": [[3, 4]],
        "p99_us": 5.0,
    }


ROWS = st.lists(
    st.tuples(st.integers(0, 161), st.integers(1, 10**6)), max_size=162, unique_by=lambda one: one[0]
)


@given(ROWS, ROWS)
def test_recordings_add_up_and_stay_bounded(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    whole = merged(merged(None, _pattern(one)), _pattern(other))
    assert (whole["recorded_us"], whole["squares"]) == (2000, [2.0, 4.0])
    assert whole["mix"] == [{"kind": "read", "count": 6, "bytes": 24576}]
    assert whole["p99_us"] == 5.0
    assert len(whole["periods"]) <= PERIODS
    if len(one) + len(other) <= PERIODS:
        assert sum(row["requests"] for row in whole["periods"]) == sum(row[1] for row in one + other)


def _cell(number: int, count: int, time: int) -> dict[str, Any]:
    return {"number": number, "kind": "read", "bytes": 4096, "load": 2.0, "count": count, "times_ns": [time]}


def test_a_device_is_known_under_old_loads_too() -> None:
    before = [_cell(1, 5000, 10), _cell(2, 1000, 20)]
    found = merged_cells(before, [_cell(2, 1000, 30), _cell(7, 1, 70)])
    assert [(one["number"], one["count"], one["times_ns"]) for one in found] == [
        (1, 5000, [10]), (2, 2000, [25]), (7, 1, [70]),
    ]  # fmt: skip


def test_a_device_that_changes_is_known_as_it_is_now() -> None:
    cells: list[Any] = [_cell(1, 10**9, 100)]
    for _ in range(10):
        cells = merged_cells(cells, [_cell(1, 5000, 200)])
    assert (cells[0]["times_ns"][0], cells[0]["bytes"]) == (pytest.approx(200, rel=0.05), 4096)
