"""Disks with more machines than there are: the real simulator, on devices that are easy to foresee."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.daemon.whatif import Scene, broken, scene_of, search
from nagaya.errors import UsageError
from nagaya.plane.demand import Device, simulate
from nagaya.plane.shares import ArbiterStatus, NodeStatus, ShareNode

MICROS = 1000


def device(places: int, service_us: int) -> Device:
    """Serves `places` at once; the others wait for one of them to be free."""
    cells = [
        {
            "number": load,
            "kind": "read",
            "bytes": 4096,
            "load": float(load),
            "count": 1000,
            "times_ns": [int(service_us * MICROS * max(1.0, load / places))] * 17,
        }
        for load in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
    ]
    return Device(tuple(cells), capacity_iops=int(places * 1e6 / service_us))


def reads(disk: str, gap_us: int, *, depth: int = 1, requests: int = 1) -> dict[str, Any]:
    """`requests` reads of 4 KiB, `depth` at a time, then a pause."""
    period = {"number": 30, "count": 1, "gap_us": gap_us, "span_us": 10**9, "requests": requests}
    return {
        "id": disk,
        "recorded_us": 10**6,
        "mix": [{"kind": "read", "count": 10, "bytes": 40960}],
        "periods": [{**period, "depth": depth, "think_us": 0}],
        "squares": [float(gap_us**2), 1e20],
        "p99_us": 0.0,
    }


def test_alone_a_request_takes_what_the_device_takes() -> None:
    (got,) = simulate(device(4, 100), [reads("m/disk0", 900)]).leaves
    assert got.p99_us == pytest.approx(100, rel=0.05)
    assert got.iops == pytest.approx(1000, rel=0.01)
    assert got.waited_us == 0


def test_the_same_seed_has_the_same_answer() -> None:
    patterns = [reads(f"m{number}/disk0", 300, depth=4, requests=8) for number in range(6)]
    one, other = (simulate(device(2, 100), patterns, seconds=1, seed=7) for _ in range(2))
    assert one == other
    assert simulate(device(2, 100), patterns, seconds=1, seed=8) != one


@pytest.mark.parametrize(("machines", "depth"), [(1, 1), (3, 4), (20, 2)])
def test_littles_law_holds(machines: int, depth: int) -> None:
    """In a closed loop all requests of a machine are under way, or thought about."""
    patterns = [
        reads(f"m{number}/disk0", 500, depth=depth, requests=depth * 1000) for number in range(machines)
    ]
    for got in simulate(device(4, 100), patterns).leaves:
        assert got.iops * got.mean_us / 1e6 == pytest.approx(got.under_way, rel=0.01)
        assert got.under_way == pytest.approx(depth, rel=0.05)


def test_a_device_does_no_more_than_it_can_and_weights_hold() -> None:
    patterns = [reads(f"m{number}/disk0", 1, depth=32, requests=10**6) for number in (1, 2)]
    nodes = [ShareNode("m1", weight=300), ShareNode("m2", weight=100)]
    one, other = simulate(device(4, 100), patterns, nodes, warm_up=3).leaves
    assert one.iops + other.iops == pytest.approx(40_000, rel=0.1)
    assert one.iops / other.iops == pytest.approx(3, rel=0.1)


def test_a_limit_holds_and_is_waited_for() -> None:
    patterns = [reads("m1/disk0", 1, depth=4, requests=10**6)]
    (got,) = simulate(device(4, 100), patterns, [ShareNode("m1", limit_iops=500)]).leaves
    assert got.iops == pytest.approx(500, rel=0.02)
    assert got.waited_us > 7000


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing has been measured"):
        simulate(Device(()), [reads("m/disk0", 1)])
    with pytest.raises(UsageError, match="m/disk0 is there twice"):
        simulate(device(1, 100), [reads("m/disk0", 1)] * 2)
    with pytest.raises(UsageError, match="simulated time"):
        simulate(device(1, 100), [], seconds=1e9)


def _scene(objective_us: int | None = None) -> Scene:
    pattern = reads("m1/disk0", 900)
    objectives = {} if objective_us is None else {"m1": objective_us}
    nodes = (ShareNode("m1", weight=50), ShareNode("m1/disk0", parent="m1"))
    return Scene("disk-8:0", 3, device(2, 100), (pattern,), nodes, (pattern,), objectives)


def test_the_search_finds_where_a_disk_gets_too_slow() -> None:
    """20,000 a second at most: twenty machines that ask 1000 times a second are served at once."""
    scene = _scene(objective_us=400)
    count, rows = search(scene, 200)
    assert 20 <= count <= 80
    assert [row.more for row in rows] == sorted({row.more for row in rows})
    assert not any(broken(row) for row in rows if row.more <= count)
    assert broken(next(row for row in rows if row.more == count + 1))
    assert rows[0].iops == pytest.approx(1000, rel=0.02)


def test_the_search_looks_no_further_than_asked() -> None:
    count, rows = search(_scene(objective_us=10**6), 5)
    assert (count, max(row.more for row in rows)) == (5, 5)


def test_an_objective_that_is_missed_already_leaves_no_room() -> None:
    assert search(_scene(objective_us=50), 5)[0] == -1
    assert search(_scene(), 5, bound_us=50)[0] == -1


def test_copies_have_the_knobs_of_the_machine_and_its_tenant() -> None:
    counts: dict[str, Any] = dict.fromkeys(
        ("dispatched", "joined", "bytes", "waiting", "in_flight", "p99_us"), 0
    )

    def node(node_id: str, parent: str | None, limit_iops: int | None = None) -> NodeStatus:
        share = (0, 0, limit_iops, None, 100, None)
        return NodeStatus(node_id, parent, *share, **counts, objective="none")

    nodes = (node("@acme", None, 1500), node("m1", "@acme"), node("m1/disk0", "m1"))
    arbiter = ArbiterStatus("disk-8:0", 0, 0, 0, 0, 0, 0, nodes)
    recorded = {"m1/disk0": {7: ("disk-8:0", reads("m1/disk0", 900)), 9: ("other", reads("m1/disk0", 1))}}
    scene = scene_of(("disk-8:0", device(2, 100)), {"m1": recorded}, "m1", [arbiter], {})
    assert scene is not None and scene.hour == 7
    assert sum(leaf.iops for leaf in scene.outcome(3).leaves) == pytest.approx(1500, rel=0.02)
    assert scene_of(("other", device(2, 100)), {"m1": recorded}, "m2", [arbiter], {}) is None
