"""What an engine refuses, field by field."""

from __future__ import annotations

from collections.abc import Iterable

from nagaya.errors import UnsupportedError
from nagaya.resources import topology
from nagaya.spec import MIB, MachineSpec
from nagaya.units import human_size

LEAST_LIMIT = 64 * MIB
Refusal = tuple[bool, str, object, str]  # whether it is wrong, the field, its value, what is allowed


def refuse(spec: MachineSpec, engine: str, rows: Iterable[Refusal]) -> None:
    """Raise `UnsupportedError` for the first row that is wrong."""
    for wrong, field, value, allowed in (*rows, _limit(spec), _node(spec)):
        if wrong:
            raise UnsupportedError(
                f"{spec.name}: {field}: {value} is not possible with engine {engine}, {allowed}", field=field
            )


def _limit(spec: MachineSpec) -> Refusal:
    limit, least = spec.memory.limit, min(spec.memory.size, LEAST_LIMIT)
    return (
        limit is not None and limit < least,
        "memory.limit",
        human_size(limit or 0),
        f"at least {human_size(least)}: no guest works with less",
    )


def _node(spec: MachineSpec) -> Refusal:
    node, there = (
        spec.memory.node,
        [one.id for one in topology.nodes()] if spec.memory.node is not None else [],
    )
    return (
        node is not None and node not in there,
        "memory.node",
        node,
        f"this host has NUMA node {', '.join(map(str, there))}",
    )
