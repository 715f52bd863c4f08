"""What the arbiter answers is read, also by a client that is older than the plane."""

from __future__ import annotations

from typing import Any

from nagaya.plane.shares import (
    ShareNode,
    WaitRow,
    arbiter_from_json,
    share_from_json,
    share_to_json,
    shares_from_json,
    wait_from_json,
)

NODE: dict[str, Any] = {
    **share_to_json(ShareNode("m1", "@acme", reservation_iops=100, latency_p99_us=5000)),
    **{
        "dispatched": 7,
        "joined": 3,
        "bytes": 28672,
        "waiting": 1,
        "in_flight": 2,
        "p99_us": 900,
        "objective": "met",
    },
}
ARBITER: dict[str, Any] = {
    **{"worker": "disk-254:0", "window": 16, "target_us": 2000, "in_flight": 3, "waiting": 4},
    **{"capacity_iops": 20000, "capacity": 400 << 20, "nodes": [NODE]},
}


def test_a_node_needs_only_its_id_and_survives_the_way_through_json() -> None:
    assert share_from_json({"id": "m1/disk0"}) == ShareNode("m1/disk0")
    node = ShareNode("m1", "@acme", 100, 2**20, 200, 2**21, 400, 5000)
    assert shares_from_json([share_to_json(node)]) == (node,)


def test_an_arbiter_is_read_with_its_nodes_and_what_is_new_is_left_out() -> None:
    arbiter = arbiter_from_json({**ARBITER, "mood": "calm", "nodes": [{**NODE, "colour": 7}]})
    assert (arbiter.worker, arbiter.window, arbiter.capacity_iops) == ("disk-254:0", 16, 20000)
    (node,) = arbiter.nodes
    assert (node.id, node.parent, node.reservation_iops, node.objective) == ("m1", "@acme", 100, "met")


def test_a_row_of_waits_is_read() -> None:
    row = {"waiter": "m1", "cause": "machine", "whom": "m2", "wait_us": 12, "requests": 3, "new": 1}
    assert wait_from_json(row) == WaitRow("m1", "machine", "m2", 12, 3)
