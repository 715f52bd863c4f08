"""What all machines use of the host, for `nagaya top` and for Prometheus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nagaya.daemon import waits
from nagaya.daemon.parts import DiskCounters
from nagaya.models.usage import ArbiterUsage, DiskUsage, MachineUsage, UsageAnswer
from nagaya.plane.shares import ArbiterStatus, NodeStatus

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor


async def usage(supervisor: Supervisor, since: int) -> UsageAnswer:
    """Counters of all machines now, and who waited for whom in the last `since` seconds."""
    plane = supervisor.parts.plane
    machines = supervisor.all()
    counters, arbiters, waited, used = await asyncio.gather(
        plane.counters(),
        plane.arbiters(),
        waits.matrix(supervisor, since),
        asyncio.to_thread(lambda: [supervisor.parts.usage(one.row.id) for one in machines]),
    )
    disk_arbiters = [arbiter for arbiter in arbiters if arbiter.resource == "disk"]
    nodes = {node.id: node for arbiter in disk_arbiters for node in arbiter.nodes}
    disks: dict[str, list[DiskUsage]] = {}
    for counter in counters:
        machine, _, name = counter.id.partition("/")
        disks.setdefault(machine, []).append(_disk(name, counter, nodes.get(counter.id)))
    return UsageAnswer(
        at=time.monotonic(),
        since=since,
        machines=[
            _machine(one, both, disks.get(one.row.id, []), nodes)
            for one, both in zip(machines, used, strict=True)
        ],
        arbiters=[_arbiter(arbiter) for arbiter in arbiters],
        waits=waited,
    )


def _machine(
    one: Supervised,
    used: tuple[int | None, int | None],
    disks: Sequence[DiskUsage],
    nodes: Mapping[str, NodeStatus],
) -> MachineUsage:
    node = nodes.get(one.row.id)
    return MachineUsage(
        id=one.row.id,
        name=one.name,
        state=str(one.state),
        weight=one.spec.disk.weight,
        cpu_us=used[0],
        memory=used[1],
        memory_size=one.spec.memory.size,
        objective=node.objective if node else "none",
        disks=sorted(disks, key=lambda disk: disk.name),
    )


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


def _arbiter(arbiter: ArbiterStatus) -> ArbiterUsage:
    return ArbiterUsage(
        worker=arbiter.worker,
        window=arbiter.window,
        target_us=arbiter.target_us,
        in_flight=arbiter.in_flight,
        waiting=arbiter.waiting,
        capacity_iops=arbiter.capacity_iops,
        capacity=arbiter.capacity,
    )
