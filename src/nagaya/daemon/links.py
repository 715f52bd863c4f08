"""The links of NICs: faults laid upon them on purpose, and the connections that go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nagaya.daemon.cabling import uplink_id
from nagaya.daemon.nics import Plug, plugs
from nagaya.daemon.outlets import outlet_id
from nagaya.daemon.ports import find
from nagaya.daemon.supervised import UP, Supervised
from nagaya.errors import NotFoundError, UsageError
from nagaya.models.fault import NicFaults
from nagaya.models.network import FlowInfo
from nagaya.plane.conditions import after

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

EFFECTS = ("loss", "delay_us", "jitter_us", "duplicate", "reorder", "partition")
UPLINK = "uplink"  # what people call the way out of a network

Partition = bool | Sequence[str]


async def set_faults(supervisor: Supervisor, name: str, nic: str, faults: Mapping[str, Any] | None) -> None:
    """Lay faults upon the link of a NIC of a machine that runs; None ends them."""
    one = supervisor.get(name)
    async with one.lock:
        one.require(UP, "given faults", hint="they last as long as the machine runs; start it first")
        plug = find(one, nic)
        plan = None if faults is None else _plan(supervisor, one, plug, faults)
        await supervisor.parts.plane.set_port_faults(f"{one.row.id}/{plug.name}", plan)
        one.conditions = after(one.conditions, "PORT_FAULTS", {"id": plug.name, "faults": plan})
        supervisor.publish(one)
        await supervisor.note(
            one, "faults" if faults else "faults over", f"{plug.name} {faults or ''}".rstrip()
        )


async def list_faults(supervisor: Supervisor, name: str) -> list[NicFaults]:
    """The NICs of a machine upon whose links there are faults."""
    one = supervisor.get(name)
    ports = await supervisor.parts.plane.ports(None) if one.nic_faults else ()
    drops = {port.id: port.drops for port in ports}
    called = _called(supervisor)
    return [
        NicFaults.from_json(
            {
                **faults,
                "nic": nic,
                "partition": called(faults.get("partition", False)),
                "dropped": sum(
                    count
                    for reason, count in drops.get(f"{one.row.id}/{nic}", {}).items()
                    if reason.startswith("fault-")
                ),
            }
        )
        for nic, faults in one.nic_faults.items()
    ]


async def flows(supervisor: Supervisor, name: str, nic: str, limit: int) -> list[FlowInfo]:
    """The connections of a NIC with the most bytes.

    Those of a NIC without security groups are counted for a minute from the first question.
    """
    one = supervisor.get(name)
    one.require(UP, "asked for its connections", hint=f"nagaya start {one.name}")
    plug = find(one, nic)
    owners = {
        address: other.name
        for other in supervisor.all()
        for mine in plugs(other.spec, other.row.nics)
        if mine.row.network == plug.row.network
        for address in mine.addresses
    }
    found = await supervisor.parts.plane.flows(f"{one.row.id}/{plug.name}", limit)
    return [
        FlowInfo(**{**asdict(flow), "protocol": str(flow.protocol), "machine": owners.get(flow.remote, "")})
        for flow in found
    ]


def _plan(supervisor: Supervisor, one: Supervised, plug: Plug, faults: Mapping[str, Any]) -> dict[str, Any]:
    if not any(faults.get(name) for name in EFFECTS):
        raise UsageError("these faults have no effect", hint=f"give at least one of {', '.join(EFFECTS)}")
    partition = faults.get("partition", False)
    if not isinstance(partition, bool):
        ids = {device_id for other in partition for device_id in _ports(supervisor, one, plug, other)}
        partition = sorted(ids)
    return {**faults, "partition": partition}


def _ports(supervisor: Supervisor, one: Supervised, plug: Plug, other: str) -> list[str]:
    """The ports of the NIC's network that are called `other`: `db`, `db/net1` or `uplink`."""
    network = plug.row.network
    if other == UPLINK:
        private = supervisor.networks.get(network).spec.mode == "user"
        return [outlet_id(one, plug) if private else uplink_id(network)]
    machine, slash, nic = other.partition("/")
    far = supervisor.get(machine)
    nics: Iterable[Plug] = [find(far, nic)] if slash else plugs(far.spec, far.row.nics)
    found = [f"{far.row.id}/{theirs.name}" for theirs in nics if theirs.row.network == network]
    if not found:
        raise NotFoundError(
            f"{other} is not on network {network}, and cannot be parted from it",
            hint=f"nagaya network ports {network}",
            network=network,
            machine=far.name,
        )
    return found


def _called(supervisor: Supervisor) -> Callable[[Partition], Partition]:
    named = supervisor.shares.names()

    def called(partition: Partition) -> Partition:
        if isinstance(partition, bool):
            return partition
        return sorted(UPLINK if port.startswith("%") else named(port) for port in partition)

    return called
