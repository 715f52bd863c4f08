"""Who gets how much of disks and networks: the trees as the plane's clients write them, and what it answers.

A tree of nodes by id: a tenant `"@acme"`, a machine `"<machine id>"`, a disk `"<machine id>/disk0"`, a NIC
`"<machine id>/net0"`; host work is `"%copy"` and the like. Rates are per second, sizes bytes (docs/plane.md,
docs/arbitration.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from nagaya.errors import UsageError

Cause = Literal["machine", "device", "limit"]
Objective = Literal["none", "met", "missed"]
Resource = Literal["disk", "network"]  # each has a tree of its own
T = TypeVar("T")

_ID = re.compile(r"[@%]?[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_NODES = 1024  # in one message, which has 64 KiB at most anyway
_BOUNDS = {
    "reservation_iops": (0, 2**32 - 1),
    "reservation": (0, 2**63 - 1),
    "limit_iops": (1, 2**32 - 1),
    "limit": (1, 2**63 - 1),
    "weight": (1, 10000),
    "latency_p99_us": (1, 60_000_000),
}
_OPTIONAL = ("limit_iops", "limit", "latency_p99_us")


@dataclass(frozen=True, slots=True)
class ShareNode:
    """A node of the tree and its knobs. `parent` None: the longest prefix of its id, or the top."""

    id: str
    parent: str | None = None
    reservation_iops: int = 0
    reservation: int = 0
    limit_iops: int | None = None
    limit: int | None = None
    weight: int = 100
    latency_p99_us: int | None = None


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as one worker's arbiter has it. Counters begin with the worker; `p99_us` is 0 while unknown."""

    id: str
    parent: str | None
    reservation_iops: int
    reservation: int
    limit_iops: int | None
    limit: int | None
    weight: int
    latency_p99_us: int | None
    dispatched: int
    joined: int  # of those, how many the device got as a part of another
    bytes: int
    waiting: int
    in_flight: int
    p99_us: int
    objective: Objective


@dataclass(frozen=True, slots=True)
class ArbiterStatus:
    """The arbiter of one worker, that is of one physical disk or of one network.

    Capacities of disks are measured, 0 while unknown; that of a network is the rate of its uplink, 0 if
    nobody said one. A network has no window.
    """

    worker: str
    window: int  # requests that it allows in flight at the device
    target_us: int  # the latency by which it judges the device
    in_flight: int
    waiting: int
    capacity_iops: int
    capacity: int  # bytes/s
    nodes: tuple[NodeStatus, ...]
    resource: Resource = "disk"


@dataclass(frozen=True, slots=True)
class WaitRow:
    """How long requests of `waiter` waited on `cause`, and because of `whom` ("" but for "machine")."""

    waiter: str
    cause: Cause
    whom: str
    wait_us: int
    requests: int  # of a network: frames
    resource: Resource = "disk"


def share_to_json(node: ShareNode) -> dict[str, object]:
    """A node as QMP has it."""
    return {field.name: getattr(node, field.name) for field in fields(node)}


def share_from_json(arguments: Mapping[str, object]) -> ShareNode:
    """The node that `arguments` describe. Raises `UsageError` naming the field, its value and the bound."""
    known = [field.name for field in fields(ShareNode)]
    for name in arguments:
        if name not in known:
            raise UsageError(f"field {name!r} of a share is unknown", hint=f"it has {', '.join(known)}")
    _check_id("id", arguments.get("id"))
    if arguments.get("parent") is not None:
        _check_id("parent", arguments["parent"])
    for name, (low, high) in _BOUNDS.items():
        value = arguments.get(name, low)
        if value is None and name in _OPTIONAL:
            continue
        if type(value) is not int or not low <= value <= high:  # a bool is not an int here
            raise UsageError(f"{name} of share {arguments['id']} is {value!r}, not {low} to {high}")
    values: Any = arguments
    return ShareNode(**values)


def shares_from_json(value: object) -> tuple[ShareNode, ...]:
    """The nodes of a list. Raises `UsageError`."""
    if not isinstance(value, list | tuple) or len(value) > _NODES:
        raise UsageError(f"shares are a list of at most {_NODES} nodes")
    for node in value:
        if not isinstance(node, dict):
            raise UsageError(f"share {node!r} is not an object", hint='write {"id": ..., "weight": ...}')
    return tuple(share_from_json(node) for node in value)


def arbiter_from_json(row: Mapping[str, Any]) -> ArbiterStatus:
    """One row of the answer to `query-arbiter`; keys that a newer plane added are left out."""
    nodes = tuple(_known(NodeStatus, node) for node in row["nodes"])
    return _known(ArbiterStatus, {**row, "nodes": nodes})


def wait_from_json(row: Mapping[str, Any]) -> WaitRow:
    """One row of the answer to `query-waits`."""
    return _known(WaitRow, row)


def _known(cls: type[T], row: Mapping[str, Any]) -> T:
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # they are dataclasses
    return cls(**{key: value for key, value in row.items() if key in names})


def _check_id(name: str, value: object) -> None:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise UsageError(f"{name} {value!r} of a share does not match {_ID.pattern}")
