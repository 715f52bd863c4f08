"""What must hold of any load on any device that is replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.errors import UsageError
from nagaya.plane.demand import Device, Outcome, simulate

NEAR = 1.05  # other draws of the same random times


def device(places: int, service_us: int) -> Device:
    """Serves `places` at once in `service_us`; the others wait for one of them to be free."""
    loads = sorted({1, places, *(places * part // 4 for part in (1, 2, 3, 5, 6, 8, 12, 16, 32, 64))} - {0})
    times = {load: int(service_us * 1000 * max(1.0, load / places)) for load in loads}
    cells = [
        {"number": load, "kind": "read", "bytes": 4096, "load": load, "count": 1000, "times_ns": [time] * 17}
        for load, time in times.items()
    ]
    return Device(tuple(cells), capacity_iops=int(places * 1e6 / service_us))


@st.composite
def patterns(draw: st.DrawFn) -> dict[str, Any]:
    """Reads: so many for each busy period, `depth` at a time, and a pause."""
    depth = draw(st.integers(1, 16))
    gap, requests = draw(st.integers(100, 20_000)), depth * draw(st.sampled_from([1, 1, 2, 100]))
    period = {"number": 60, "count": 1, "gap_us": gap, "span_us": gap * 2, "requests": requests}
    return {
        "recorded_us": 10**6,
        "mix": [{"kind": "read", "count": 1, "bytes": 4096}],
        "periods": [{**period, "depth": depth, "think_us": 0}],
        "squares": [gap**2, 1e20],
        "p99_us": 0.0,
    }


CROWDS = st.lists(patterns(), min_size=1, max_size=6)
DEVICES = st.builds(device, st.integers(1, 32), st.integers(50, 2000))


def replayed(found: Device, crowd: Sequence[dict[str, Any]]) -> Outcome:
    named = [{**one, "id": f"m{number}/disk0"} for number, one in enumerate(crowd)]
    return simulate(found, named, seconds=2, warm_up=2)


@given(DEVICES, CROWDS)
@settings(max_examples=40)
def test_nobody_gets_more_than_the_device_can_do_and_latencies_are_in_order(
    found: Device, crowd: list[dict[str, Any]]
) -> None:
    outcome = replayed(found, crowd)
    fastest = min(cell["times_ns"][0] for cell in found.cells) / 1000
    assert sum(leaf.iops for leaf in outcome.leaves) <= found.capacity_iops * NEAR
    for leaf in outcome.leaves:
        if leaf.iops:
            assert fastest * 0.9 <= leaf.p50_us <= leaf.p99_us
            assert leaf.mean_us >= fastest * 0.999 and leaf.waited_us <= leaf.mean_us
            assert math.isclose(leaf.iops * leaf.mean_us / 1e6, leaf.under_way, rel_tol=0.01)


@given(DEVICES, CROWDS)
@settings(max_examples=40)
def test_a_device_of_half_the_speed_serves_nobody_better(found: Device, crowd: list[dict[str, Any]]) -> None:
    slow = replace(
        found,
        capacity_iops=found.capacity_iops // 2,
        cells=tuple({**cell, "times_ns": [2 * time for time in cell["times_ns"]]} for cell in found.cells),
    )
    before, after = replayed(found, crowd), replayed(slow, crowd)
    assert total(after) <= total(before) * NEAR
    assert mean_us(after) >= mean_us(before) / NEAR


@given(DEVICES, patterns(), st.integers(1, 5))
@settings(max_examples=40)
def test_one_more_of_the_same_leaves_no_more_for_each(
    found: Device, pattern: dict[str, Any], count: int
) -> None:
    before, after = replayed(found, [pattern] * count), replayed(found, [pattern] * (count + 1))
    assert total(after) / (count + 1) <= total(before) / count * NEAR + 1
    assert total(after) >= total(before) / NEAR - 1


@given(st.integers(1, 16), st.integers(100, 1000), st.integers(2, 5))
@settings(max_examples=20)
def test_a_device_with_enough_to_do_does_not_rest(places: int, service_us: int, machines: int) -> None:
    busy = {
        "recorded_us": 10**6,
        "mix": [{"kind": "read", "count": 1, "bytes": 4096}],
        "periods": [
            {"number": 5, "count": 1, "gap_us": 0, "span_us": 0, "requests": 1024, "depth": 32, "think_us": 0}
        ],
        "squares": [0, 0],
        "p99_us": 0.0,
    }
    found = device(places, service_us)
    outcome = simulate(
        found, [{**busy, "id": f"m{number}/disk0"} for number in range(machines)], seconds=4, warm_up=6
    )
    assert total(outcome) >= found.capacity_iops * 0.9


NUMBERS = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 1, 2**32, 2**53]))
ANY_PERIODS = st.fixed_dictionaries(
    {"number": st.integers(0, 65535)}
    | dict.fromkeys(("count", "gap_us", "span_us", "requests", "depth", "think_us"), NUMBERS)
)
ANY_PATTERNS = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["m/disk0", "m/disk1", "", "//"]),
        "recorded_us": NUMBERS,
        "mix": st.lists(
            st.fixed_dictionaries(
                {"kind": st.sampled_from(["read", "write", "flush"]), "count": NUMBERS, "bytes": NUMBERS}
            ),
            max_size=3,
        ),
        "periods": st.lists(ANY_PERIODS, max_size=3),
        "squares": st.tuples(st.floats(0, 1e300), st.floats(0, 1e300)),
        "p99_us": st.floats(0, 1e12),
    }
)
ANY_CELLS = st.fixed_dictionaries(
    {
        "number": st.integers(0, 65535),
        "kind": st.sampled_from(["read", "write", "flush"]),
        "bytes": NUMBERS,
        "load": st.floats(0, 1e9),
        "count": st.integers(0, 2**32 - 1),
        "times_ns": st.lists(st.integers(0, 2**40), min_size=17, max_size=17),
    }
)


@given(st.lists(ANY_CELLS, max_size=3), st.lists(ANY_PATTERNS, max_size=3), NUMBERS, NUMBERS)
@settings(max_examples=100)
def test_whatever_a_store_says_there_is_an_answer_or_a_reason(
    cells: list[Any], crowd: list[Any], iops: int, rate: int
) -> None:
    try:
        outcome = simulate(Device(tuple(cells), iops, rate), crowd, seconds=0.01, warm_up=0.01)
    except UsageError as error:
        assert str(error).startswith("this cannot be simulated: ")
    else:
        assert all(math.isfinite(leaf.p99_us) and leaf.iops >= 0 for leaf in outcome.leaves)


def total(outcome: Outcome) -> float:
    """Answers a second of all."""
    return sum(leaf.iops for leaf in outcome.leaves)


def mean_us(outcome: Outcome) -> float:
    """Of all answers."""
    return sum(leaf.iops * leaf.mean_us for leaf in outcome.leaves) / max(1.0, total(outcome))
