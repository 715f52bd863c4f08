"""What all machines use of the host, for `nagaya top` and for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nagaya.daemon import waits
from nagaya.daemon.parts import DiskCounters, PlaneControl
from nagaya.daemon.pressure import pressure_info
from nagaya.models.usage import (
    ArbiterUsage,
    BalloonUsage,
    DiskUsage,
    MachineUsage,
    NicUsage,
    UplinkUsage,
    UsageAnswer,
)
from nagaya.plane.balloons import BalloonStatus
from nagaya.plane.ports import PortStatus
from nagaya.plane.shares import ArbiterStatus, NodeStatus
from nagaya.resources.pressure import GroupPressure

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor


async def usage(supervisor: Supervisor, since: int) -> UsageAnswer:
    """Counters of all machines now, and who waited for whom in the last `since` seconds."""
    parts, plane = supervisor.parts, supervisor.parts.plane
    machines = supervisor.all()
    (at, counters), arbiters, ports, waited, used, host = await asyncio.gather(
        _counters(plane),
        plane.arbiters(),
        plane.ports(None),
        waits.matrix(supervisor, since),
        asyncio.to_thread(lambda: [(_used(supervisor, one), parts.pressure(one.row.id)) for one in machines]),
        asyncio.to_thread(supervisor.pressure.host),
    )
    nodes, net_nodes = (_nodes(arbiters, resource) for resource in ("disk", "network"))
    disks: dict[str, list[DiskUsage]] = {}
    for counter in counters:
        machine, _, name = counter.id.partition("/")
        disks.setdefault(machine, []).append(_disk(name, counter, nodes.get(counter.id)))
    nics: dict[str, list[NicUsage]] = {}
    for port in ports:
        machine, _, name = port.id.partition("/")
        if port.mac is not None:
            nics.setdefault(machine, []).append(_nic(name, port, net_nodes.get(port.id)))
    balloons = {one.id.partition("/")[0]: _balloon(one) for one in await plane.balloons()}
    return UsageAnswer(
        at=at,
        since=since,
        machines=[
            replace(
                _machine(
                    one, both, disks.get(one.row.id, []), nics.get(one.row.id, []), nodes.get(one.row.id)
                ),
                balloon=balloons.get(one.row.id),
            )
            for one, both in zip(machines, used, strict=True)
        ],
        arbiters=[_arbiter(arbiter) for arbiter in arbiters],
        waits=waited,
        uplinks=[_uplink(port, arbiters) for port in ports if port.mac is None],
        host=host,
    )


async def _counters(plane: PlaneControl) -> tuple[float, Sequence[DiskCounters]]:
    """The disks' counters, and when they were read: a rate by any later time is off on a busy host."""
    before = time.monotonic()
    counters = await plane.counters()
    return (before + time.monotonic()) / 2, counters


def _used(supervisor: Supervisor, one: Supervised) -> tuple[int | None, int | None]:
    return supervisor.parts.usage(one.row.id)[0], supervisor.memory.held.of(one).total


def _machine(
    one: Supervised,
    measured: tuple[tuple[int | None, int | None], GroupPressure],
    disks: Sequence[DiskUsage],
    nics: Sequence[NicUsage],
    node: NodeStatus | None,
) -> MachineUsage:
    (cpu_us, memory), pressure = measured
    return MachineUsage(
        id=one.row.id,
        name=one.name,
        state=str(one.state),
        weight=one.spec.disk.weight,
        cpu_us=cpu_us,
        memory=memory,
        memory_size=one.spec.memory.size,
        objective=node.objective if node else "none",
        disks=sorted(disks, key=lambda disk: disk.name),
        nics=sorted(nics, key=lambda nic: nic.name),
        pressure=pressure_info(pressure),
    )


def _balloon(one: BalloonStatus) -> BalloonUsage:
    return BalloonUsage(one.size, one.actual, one.reported, one.stats.available if one.stats else None)


def _disk(name: str, counter: DiskCounters, node: NodeStatus | None) -> DiskUsage:
    return DiskUsage(
        name=name,
        reads=counter.reads,
        writes=counter.writes,
        flushes=counter.flushes,
        discards=counter.discards,
        read_bytes=counter.read_bytes,
        written_bytes=counter.written_bytes,
        errors=counter.errors,
        in_flight=counter.in_flight,
        waiting=node.waiting if node else 0,
        p99_us=node.p99_us if node else 0,
    )


def _nic(name: str, port: PortStatus, node: NodeStatus | None) -> NicUsage:
    return NicUsage(
        name=name,
        network=port.network,
        link=port.link,
        rx_packets=port.rx_packets,
        rx_bytes=port.rx_bytes,
        tx_packets=port.tx_packets,
        tx_bytes=port.tx_bytes,
        drops=dict(port.drops),
        waiting=node.waiting if node else 0,
    )


def _uplink(port: PortStatus, arbiters: Sequence[ArbiterStatus]) -> UplinkUsage:
    """A port's counters are of who is at it: what the world got is what the network sent."""
    arbiter = next((one for one in arbiters if one.worker == f"net-{port.network}"), None)
    return UplinkUsage(
        network=port.network,
        rate=arbiter.capacity if arbiter else 0,
        rx_packets=port.tx_packets,
        rx_bytes=port.tx_bytes,
        tx_packets=port.rx_packets,
        tx_bytes=port.rx_bytes,
        drops=dict(port.drops),
        waiting=arbiter.waiting if arbiter else 0,
    )


def _nodes(arbiters: Sequence[ArbiterStatus], resource: str) -> Mapping[str, NodeStatus]:
    return {node.id: node for one in arbiters if one.resource == resource for node in one.nodes}


def _arbiter(arbiter: ArbiterStatus) -> ArbiterUsage:
    return ArbiterUsage(
        worker=arbiter.worker,
        window=arbiter.window,
        target_us=arbiter.target_us,
        in_flight=arbiter.in_flight,
        waiting=arbiter.waiting,
        capacity_iops=arbiter.capacity_iops,
        capacity=arbiter.capacity,
        resource=arbiter.resource,
    )
