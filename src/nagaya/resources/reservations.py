"""Whether what machines reserve of a disk or a network fits what it can do, as its arbiter knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from nagaya.errors import ResourceError
from nagaya.plane.shares import ArbiterStatus, NodeStatus, Resource, ShareNode
from nagaya.units import format_rate, human_size

Unit = Literal["iops", "bytes"]

_KNOBS = [field.name for field in fields(ShareNode)]
_NAMED = 8  # of those who have reserved; a message is not a table


@dataclass(frozen=True, slots=True)
class _Tree:
    """The nodes of one arbiter, and the children of each; those of None are at the top."""

    nodes: Mapping[str, ShareNode]
    children: Mapping[str | None, Sequence[str]]

    @classmethod
    def of(cls, nodes: Mapping[str, ShareNode]) -> _Tree:
        children: dict[str | None, list[str]] = {}
        for node in nodes.values():
            children.setdefault(parent(node, nodes), []).append(node.id)
        return cls(nodes, children)

    def promised(self, node_id: str, unit: Unit) -> int:
        """What a node has been promised: its own reservation, or its children's if they are more."""
        return max(_reservation(self.nodes[node_id], unit), self.below(node_id, unit))

    def below(self, node_id: str | None, unit: Unit) -> int:
        """What the children of a node have been promised together; of None, all there are."""
        return sum(self.promised(child, unit) for child in self.children.get(node_id, ()))


def parent(node: ShareNode, nodes: Mapping[str, object]) -> str | None:
    """The node above: the one that is said, or the longest prefix of its id; None at the top."""
    if node.parent is not None:
        return node.parent if node.parent in nodes else None
    above = node.id.rpartition("/")[0]
    while above and above not in nodes:
        above = above.rpartition("/")[0]
    return above or None


def admit(
    arbiters: Iterable[ArbiterStatus],
    wanted: Sequence[ShareNode],
    before: Sequence[ShareNode],
    name: Callable[[str], str],
) -> None:
    """Raise `ResourceError` with the arithmetic unless each disk or network can keep what `wanted` reserve.

    `before` is what these nodes had until now (nothing, at a start): taking less is never refused. `name` is
    what people call a node.
    """
    for arbiter in arbiters:
        has = _served(arbiter)
        machines = [node for node in wanted if not node.id.startswith("@")]
        if not any(node.id in has for node in machines or wanted):
            continue
        here = [node for node in wanted if node.id in has or node.id.startswith("@")]
        ids = {node.id for node in here}
        others = {node_id: node for node_id, node in has.items() if node_id not in ids}
        old = _Tree.of(others | {node.id: node for node in before if node.id in ids})
        new = _Tree.of(others | {node.id: node for node in here})
        for unit, capacity in capacities(arbiter):
            _within_limits(new, old, (arbiter.resource, unit), name)
            if capacity and new.below(None, unit) > max(capacity, old.below(None, unit)):
                raise _refusal(arbiter, capacity, unit, *_asked_and_held(new, ids, unit, name))


def capacities(arbiter: ArbiterStatus) -> tuple[tuple[Unit, int], ...]:
    """What a disk or a network can do in a second, by unit; 0 while nobody knows."""
    return (("iops", arbiter.capacity_iops), ("bytes", arbiter.capacity))


def promised(arbiter: ArbiterStatus, unit: Unit) -> int:
    """What those who run on a disk or a network have been promised together."""
    return _Tree.of(_served(arbiter)).below(None, unit)


def _asked_and_held(
    tree: _Tree, ids: set[str], unit: Unit, name: Callable[[str], str]
) -> tuple[dict[str, int], dict[str, int]]:
    """What those at the top are promised, by name: those of `ids`, and the others that have something."""
    tops = {top: tree.promised(top, unit) for top in tree.children.get(None, ())}
    asked = {name(top): much for top, much in tops.items() if top in ids}
    held = {name(top): much for top, much in tops.items() if top not in ids and much}
    return asked, held


def _refusal(
    arbiter: ArbiterStatus, capacity: int, unit: Unit, asked: Mapping[str, int], held: Mapping[str, int]
) -> ResourceError:
    of = f"disk {arbiter.worker}", "as measured"
    if arbiter.resource == "network":
        of = f"network {arbiter.worker.removeprefix('net-')}", "at its uplink"
    need, promised = sum(asked.values()), sum(held.values())
    left = max(0, capacity - promised)
    return ResourceError(
        f"{', '.join(asked)} reserves {_text(need, unit)} of {of[0]}, {_text(left, unit)} are left: "
        f"it does {_text(capacity, unit)} {of[1]}, {_text(promised, unit)} are promised"
        f"{_listed(held, unit)}",
        hint=f"reserve {_text(left, unit)} at most, or lower what another reserves (nagaya set)",
        worker=arbiter.worker,
        unit=unit,
        capacity=capacity,
        need=need,
        promised=promised,
        free=left,
    )


def _within_limits(new: _Tree, old: _Tree, what: tuple[Resource, Unit], name: Callable[[str], str]) -> None:
    """What the parts of a node reserve together must not be above its limit."""
    resource, unit = what
    for node in new.nodes.values():
        limit = node.limit_iops if unit == "iops" else node.limit
        asked = new.below(node.id, unit)
        if limit is None or asked <= limit or asked <= old.below(node.id, unit):
            continue
        parts = {name(child): new.promised(child, unit) for child in new.children[node.id]}
        raise ResourceError(
            f"{name(node.id)} is limited to {_text(limit, unit)}, and its parts reserve {_text(asked, unit)}"
            f"{_listed(parts, unit)}",
            hint=f"raise {resource}.limit of {name(node.id)}, or reserve less",
            node=name(node.id),
            unit=unit,
            limit=limit,
            need=asked,
        )


def _listed(holders: Mapping[str, int], unit: Unit) -> str:
    most = sorted(holders.items(), key=lambda one: (-one[1], one[0]))
    words = [f"{who} {_text(much, unit)}" for who, much in most[:_NAMED]]
    words += [f"{len(most) - _NAMED} more"] if len(most) > _NAMED else []
    return f" ({', '.join(words)})" if words else ""


def _text(amount: int, unit: Unit) -> str:
    if unit == "iops":
        return f"{amount}iops"
    return format_rate(amount) if amount % 2**20 == 0 else f"{human_size(amount)}/s"


def _reservation(node: ShareNode, unit: Unit) -> int:
    return node.reservation_iops if unit == "iops" else node.reservation


def _served(arbiter: ArbiterStatus) -> dict[str, ShareNode]:
    """The nodes that have a part or host work here, and those above; others wait for devices elsewhere."""
    known = {node.id: _knobs(node) for node in arbiter.nodes}
    found: dict[str, ShareNode] = {}
    for leaf in known:
        at: str | None = leaf if "/" in leaf or leaf.startswith("%") else None
        while at is not None and at not in found:
            found[at] = known[at]
            at = parent(known[at], known)
    return found


def _knobs(node: NodeStatus) -> ShareNode:
    return replace(ShareNode(node.id), **{knob: getattr(node, knob) for knob in _KNOBS})
