"""Rows of waits are summed over the time that is asked for, and the ring stays small."""

from __future__ import annotations

from nagaya.plane.shares import Cause, WaitRow
from nagaya.plane.waits import WaitRing


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def row(waiter: str, whom: str, wait_us: int = 10, cause: Cause = "machine") -> dict[str, object]:
    return {"waiter": waiter, "cause": cause, "whom": whom, "wait_us": wait_us, "requests": 1}


def test_rows_are_summed_over_the_seconds_that_are_asked_for() -> None:
    clock = Clock()
    ring = WaitRing(clock)
    for _ in range(100):
        ring.add([row("m1", "m2"), row("m1", "", 50, "device")])
        clock.now += 1
    assert ring.since(10) == [
        WaitRow("m1", "device", "", 500, 10),
        WaitRow("m1", "machine", "m2", 100, 10),
    ]
    assert ring.since(3600)[0].requests == 100
    clock.now += 60
    assert ring.since(10) == []


def test_old_rows_are_kept_in_sums_of_ten_seconds_and_for_an_hour() -> None:
    clock = Clock()
    ring = WaitRing(clock)
    for _ in range(5000):
        ring.add([row("m1", "m2")])
        clock.now += 1
    assert len(ring._fine) + len(ring._coarse) < 500
    (total,) = ring.since(3600)
    assert 3580 <= total.requests <= 3600
    (half,) = ring.since(1800)
    assert 1785 <= half.requests <= 1800


def test_a_node_is_asked_for_with_what_is_below_it() -> None:
    ring = WaitRing(Clock())
    ring.add([row("m1", "m2"), row("m1/disk0", "m2"), row("m10", "m2"), row("m2", "m1")])
    assert {one.waiter for one in ring.since(60, "m1")} == {"m1", "m1/disk0"}
    assert len(ring.since(60)) == 4


def test_too_many_rows_are_kept_as_others() -> None:
    ring = WaitRing(Clock())
    ring.add([row(f"m{number}", "n") for number in range(300)])
    rows = ring.since(60)
    assert len(rows) <= 257
    assert sum(one.requests for one in rows) == 300
    assert next(one for one in rows if one.waiter == "").requests == 44
