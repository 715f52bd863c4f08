"""The metrics of pressure, for `nagaya.daemon.metrics` (docs/memory.md has the names)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from nagaya.models.pressure import HostPressureInfo
from nagaya.models.usage import MachineUsage
from nagaya.resources.alarms import MARKS

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_COUNTERS = (  # name, attribute, factor
    (
        "nagaya_machine_cpu_wait_seconds",
        "cpu_wait_us",
        1e-6,
        "Time in which a machine could run and did not.",
    ),
    ("nagaya_machine_cpu_throttled_seconds", "throttled_us", 1e-6, "Of that: held by its own limit."),
    ("nagaya_machine_memory_stall_seconds", "memory_stall_us", 1e-6, "Time in which it waited for memory."),
    (
        "nagaya_machine_disk_stall_seconds",
        "disk_stall_us",
        1e-6,
        "Time in which it waited for the swap.",
    ),
    ("nagaya_machine_major_faults", "major_faults", 1, "Its page faults that read from a disk of the host."),
    (
        "nagaya_machine_memory_limit_hits",
        "memory_limit_hits",
        1,
        "How often it wanted more than its limit.",
    ),
)


def of_machines(machines: Iterable[MachineUsage]) -> Iterator[Metric]:
    """Counters of each machine; what this host does not tell is left out."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    known = [(one.name, one.pressure) for one in machines]
    for name, attribute, factor, text in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=("machine",))
        for machine, pressure in known:
            value = getattr(pressure, attribute)
            if value is not None:
                family.add_metric((machine,), value * factor)
        yield family
    swap = GaugeMetricFamily(
        "nagaya_machine_swap_bytes", "Its memory that is swapped out.", labels=("machine",)
    )
    for machine, pressure in known:
        if pressure.swap is not None:
            swap.add_metric((machine,), pressure.swap)
    yield swap


def of_host(host: HostPressureInfo) -> Iterator[Metric]:
    """Stalls of the host, and its alarms."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    stall = CounterMetricFamily(
        "nagaya_host_stall_seconds",
        "Time in which some, or all, work of the host waited.",
        labels=("resource", "work"),
    )
    for resource, one in (("cpu", host.cpu), ("memory", host.memory), ("disk", host.disk)):
        if one is not None:
            stall.add_metric((resource, "some"), one.some_us / 1e6)
            stall.add_metric((resource, "all"), one.full_us / 1e6)
    yield stall
    if host.steal_us is not None:
        yield CounterMetricFamily(
            "nagaya_host_steal_seconds", "CPU time that the host's own host took.", value=host.steal_us / 1e6
        )
    if host.memory_available is not None:
        yield GaugeMetricFamily(
            "nagaya_host_memory_available_bytes", "Memory without swapping.", value=host.memory_available
        )
    alarm = GaugeMetricFamily("nagaya_host_alarm", "1 while it is raised.", labels=("alarm",))
    raised = {one.name for one in host.alarms}
    for name in MARKS:
        alarm.add_metric((name,), float(name in raised))
    yield alarm
