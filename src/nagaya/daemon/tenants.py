"""Tenants, names under which machines share together, and the trees of machines and their parts below them.

Tenants are remembered as one fact of the state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from nagaya.daemon.state import State
from nagaya.daemon.writer import Writer
from nagaya.knobs import DiskKnobs, NetworkKnobs
from nagaya.plane.shares import Resource, ShareNode
from nagaya.spec import MachineSpec, Tenant

_FACT = "tenants"
Nodes = tuple[ShareNode, ...]


class Tenants:
    """The knobs of tenants by name. One that nobody has set anything of has the defaults."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        found = json.loads(writer.state.fact(_FACT) or "[]")
        self._tenants = {tenant.name: tenant for tenant in map(Tenant.model_validate, found)}

    def get(self, name: str) -> Tenant:
        """The tenant of that name, whether or not it was ever heard of."""
        return self._tenants.get(name) or Tenant(name=name)

    def names(self) -> list[str]:
        """Those with knobs of their own."""
        return sorted(self._tenants)

    async def save(self, tenant: Tenant) -> None:
        """Remember it; on disk when this returns. One with the defaults is forgotten."""
        tenants = {**self._tenants, tenant.name: tenant}
        if tenant == Tenant(name=tenant.name):
            del tenants[tenant.name]
        text = json.dumps([tenants[name].to_json() for name in sorted(tenants)])
        await self._writer.call(State.set_fact, _FACT, text)
        self._tenants = tenants


def share_nodes(machine_id: str, spec: MachineSpec, tenants: Tenants) -> Mapping[Resource, Nodes]:
    """The nodes of a machine in the arbiters' trees, from the top: its tenant if any, itself, its parts."""
    return {
        "disk": _disk_nodes(machine_id, spec, tenants),
        "network": _network_nodes(machine_id, spec, tenants),
    }


def tenant_nodes(tenant: Tenant) -> Mapping[Resource, ShareNode]:
    """The node of a tenant in each tree."""
    name = f"@{tenant.name}"
    return {"disk": share_node(name, None, tenant.disk), "network": network_node(name, None, tenant.network)}


def _disk_nodes(machine_id: str, spec: MachineSpec, tenants: Tenants) -> Nodes:
    above = f"@{spec.tenant}" if spec.tenant else None
    top = (share_node(above, None, tenants.get(spec.tenant).disk),) if above else ()
    disks = (share_node(f"{machine_id}/disk{n}", machine_id, disk.share) for n, disk in enumerate(spec.disks))
    return (*top, share_node(machine_id, above, spec.disk), *disks)


def _network_nodes(machine_id: str, spec: MachineSpec, tenants: Tenants) -> Nodes:
    above = f"@{spec.tenant}" if spec.tenant else None
    top = (network_node(above, None, tenants.get(spec.tenant).network),) if above else ()
    nics = enumerate(spec.nics or ())
    parts = (network_node(f"{machine_id}/net{n}", machine_id, nic.share) for n, nic in nics)
    return (*top, network_node(machine_id, above, spec.network), *parts)


def path_of(disk: int, nodes: Sequence[ShareNode]) -> tuple[ShareNode, ...]:
    """Of a machine's nodes those from the top down to one disk."""
    return tuple(node for node in nodes if "/" not in node.id or node.id.endswith(f"/disk{disk}"))


def share_node(node_id: str, above: str | None, knobs: DiskKnobs) -> ShareNode:
    """A node with the knobs of a specification."""
    return ShareNode(
        node_id,
        above,
        reservation_iops=knobs.reservation_iops,
        reservation=knobs.reservation,
        limit_iops=knobs.limit_iops,
        limit=knobs.limit,
        weight=knobs.weight,
        latency_p99_us=knobs.latency_p99,
    )


def network_node(node_id: str, above: str | None, knobs: NetworkKnobs) -> ShareNode:
    """The same of networks."""
    return ShareNode(node_id, above, reservation=knobs.reservation, limit=knobs.limit, weight=knobs.weight)
