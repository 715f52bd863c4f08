"""What Prometheus reads at `/v1/metrics` (docs/arbitration.md has the names).

`prometheus_client` takes 80 ms to import, so it is imported by the first who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from nagaya.daemon import pressuremetrics
from nagaya.daemon.memorymetrics import of_broker
from nagaya.models.machine import MachineState
from nagaya.models.memory import MemoryAnswer
from nagaya.models.usage import MachineUsage, UplinkUsage, UsageAnswer
from nagaya.models.waits import WaitInfo

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WAITS_SINCE = 60  # s that the rows of waits are about
WAIT_ROWS = 256  # of each resource: the longest; what is beyond is summed as `others`

_WAITERS = {"disk": "requests", "network": "frames", "cpu": "machines", "memory": "machines"}
_DISK_COUNTERS = (
    ("reads", "Read requests of a virtual disk."),
    ("writes", "Write requests of a virtual disk."),
    ("flushes", "Flush requests of a virtual disk."),
    ("discards", "Discard requests of a virtual disk."),
    ("read_bytes", "Bytes read from a virtual disk."),
    ("written_bytes", "Bytes written to a virtual disk."),
    ("errors", "Requests of a virtual disk that were answered with an error."),
)
_PORT_COUNTERS = (  # name, of a NIC, and of an uplink
    ("receive_bytes", "rx_bytes", "Bytes that a NIC got.", "Bytes that came from the world."),
    ("receive_packets", "rx_packets", "Packets that a NIC got.", "Packets that came from the world."),
    ("transmit_bytes", "tx_bytes", "Bytes that a NIC sent.", "Bytes that went to the world."),
    ("transmit_packets", "tx_packets", "Packets that a NIC sent.", "Packets that went to the world."),
)
_ARBITER_GAUGES = (
    ("window_requests", "window", 1, "Requests that the arbiter of a disk of the host allows in flight."),
    ("in_flight_requests", "in_flight", 1, "Requests in flight at a disk of the host."),
    ("waiting_requests", "waiting", 1, "Requests that wait for a disk of the host."),
    ("target_seconds", "target_us", 1e-6, "Latency by which the arbiter judges a disk of the host."),
    ("capacity_iops", "capacity_iops", 1, "Requests per second that a disk does as measured; 0: unknown."),
    ("capacity_bytes_per_second", "capacity", 1, "Bytes per second that a disk does; 0: unknown."),
)


def render(usage: UsageAnswer, memory: MemoryAnswer) -> bytes:
    """All metrics as Prometheus' text."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Once:
        def collect(self) -> Iterable[Metric]:
            yield from _metrics(usage)
            yield from of_broker(memory)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    text: bytes = generate_latest(registry)
    return text


def _metrics(usage: UsageAnswer) -> Iterator[Metric]:
    yield from _machines(usage.machines)
    yield from pressuremetrics.of_machines(usage.machines)
    yield from _balloons(usage.machines)
    yield from pressuremetrics.of_host(usage.host)
    yield from _disks(usage.machines)
    yield from _nics(usage.machines)
    yield from _uplinks(usage.uplinks)
    yield from _arbiters(usage)
    waits, since = usage.waits, usage.since
    for resource, things in _WAITERS.items():
        yield _waits(resource, things, [row for row in waits if row.resource == resource], since)


def _machines(machines: Iterable[MachineUsage]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    state = GaugeMetricFamily("nagaya_machine_state", "1 for its state, else 0.", labels=("machine", "state"))
    cpu = CounterMetricFamily("nagaya_machine_cpu_seconds", "CPU time of a machine.", labels=("machine",))
    memory = GaugeMetricFamily(
        "nagaya_machine_memory_bytes", "Host memory of a machine, its helpers included.", labels=("machine",)
    )
    size = GaugeMetricFamily("nagaya_machine_memory_size_bytes", "RAM of the guest.", labels=("machine",))
    met = GaugeMetricFamily(
        "nagaya_machine_latency_objective_met", "Whether disk.latency_p99 is met.", labels=("machine",)
    )
    for one in machines:
        for name in MachineState:
            state.add_metric((one.name, str(name)), float(one.state == name))
        size.add_metric((one.name,), one.memory_size)
        if one.cpu_us is not None:
            cpu.add_metric((one.name,), one.cpu_us / 1e6)
        if one.memory is not None:
            memory.add_metric((one.name,), one.memory)
        if one.objective != "none":
            met.add_metric((one.name,), float(one.objective == "met"))
    yield from (state, cpu, memory, size, met)


def _balloons(machines: Iterable[MachineUsage]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ("machine",)
    size = GaugeMetricFamily("nagaya_machine_balloon_size_bytes", "Memory it is to give.", labels=labels)
    actual = GaugeMetricFamily("nagaya_machine_balloon_bytes", "What its guest says it gave.", labels=labels)
    reported = CounterMetricFamily(
        "nagaya_machine_reported_bytes", "Free memory of a guest that the host has taken.", labels=labels
    )
    available = GaugeMetricFamily(
        "nagaya_machine_available_bytes", "Memory that its guest says it could still use.", labels=labels
    )
    for one in machines:
        if one.balloon is None:
            continue
        size.add_metric((one.name,), one.balloon.size)
        actual.add_metric((one.name,), one.balloon.actual)
        reported.add_metric((one.name,), one.balloon.reported)
        if one.balloon.available is not None:
            available.add_metric((one.name,), one.balloon.available)
    yield from (size, actual, reported, available)


def _disks(machines: Iterable[MachineUsage]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ("machine", "disk")
    disks = [((one.name, disk.name), disk) for one in machines for disk in one.disks]
    for name, text in _DISK_COUNTERS:
        family = CounterMetricFamily(f"nagaya_disk_{name}", text, labels=labels)
        for key, disk in disks:
            family.add_metric(key, getattr(disk, name))
        yield family
    flight = GaugeMetricFamily("nagaya_disk_in_flight_requests", "Requests not answered yet.", labels=labels)
    waiting = GaugeMetricFamily("nagaya_disk_waiting_requests", "Of these, not started yet.", labels=labels)
    p99 = GaugeMetricFamily(
        "nagaya_disk_latency_p99_seconds", "99 of 100 requests are answered sooner.", labels=labels
    )
    for key, disk in disks:
        flight.add_metric(key, disk.in_flight)
        waiting.add_metric(key, disk.waiting)
        if disk.p99_us:
            p99.add_metric(key, disk.p99_us / 1e6)
    yield from (flight, waiting, p99)


def _nics(machines: Iterable[MachineUsage]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    labels = ("machine", "nic", "network")
    nics = [((one.name, nic.name, nic.network), nic) for one in machines for nic in one.nics]
    for name, attribute, text, _ in _PORT_COUNTERS:
        family = CounterMetricFamily(f"nagaya_network_{name}", text, labels=labels)
        for key, nic in nics:
            family.add_metric(key, getattr(nic, attribute))
        yield family
    drops = CounterMetricFamily(
        "nagaya_network_drops", "Frames from or for a NIC that were dropped.", labels=(*labels, "reason")
    )
    link = GaugeMetricFamily("nagaya_network_link_up", "Whether its cable is plugged.", labels=labels)
    waiting = GaugeMetricFamily(
        "nagaya_network_waiting_frames", "Frames that wait for a limit or their share.", labels=labels
    )
    for key, nic in nics:
        for reason, count in nic.drops.items():
            drops.add_metric((*key, reason), count)
        link.add_metric(key, float(nic.link))
        waiting.add_metric(key, nic.waiting)
    yield from (drops, link, waiting)


def _uplinks(uplinks: Sequence[UplinkUsage]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, attribute, _, text in _PORT_COUNTERS:
        family = CounterMetricFamily(f"nagaya_uplink_{name}", text, labels=("network",))
        for uplink in uplinks:
            family.add_metric((uplink.network,), getattr(uplink, attribute))
        yield family
    drops = CounterMetricFamily(
        "nagaya_uplink_drops", "Frames from or for the world that were dropped.", labels=("network", "reason")
    )
    rate = GaugeMetricFamily(
        "nagaya_uplink_rate_bytes_per_second", "What an uplink carries, if it is known.", labels=("network",)
    )
    for uplink in uplinks:
        for reason, count in uplink.drops.items():
            drops.add_metric((uplink.network, reason), count)
        if uplink.rate:
            rate.add_metric((uplink.network,), uplink.rate)
    yield from (drops, rate)


def _arbiters(usage: UsageAnswer) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, attribute, factor, text in _ARBITER_GAUGES:
        family = GaugeMetricFamily(f"nagaya_arbiter_{name}", text, labels=("worker",))
        for arbiter in usage.arbiters:
            if arbiter.resource != "disk":
                continue  # of a network the rate and the waits have names of their own
            family.add_metric((arbiter.worker,), getattr(arbiter, attribute) * factor)
        yield family


def _waits(resource: str, things: str, rows: Iterable[WaitInfo], since: int) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(
        f"nagaya_{resource}_wait_seconds",
        f"Time that {things} waited in the last {since} seconds, by cause and because of whom.",
        labels=("waiter", "cause", "whom"),
    )
    sums: dict[tuple[str, str, str], int] = {}
    for row in rows:
        key = (row.waiter, str(row.cause), row.whom)
        if key not in sums and len(sums) >= WAIT_ROWS:
            key = ("others", str(row.cause), "others" if row.whom else "")
        sums[key] = sums.get(key, 0) + row.wait_us
    for key, wait_us in sums.items():
        family.add_metric(key, wait_us / 1e6)
    return family
