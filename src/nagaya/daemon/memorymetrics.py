"""The metrics of the memory broker, for `nagaya.daemon.metrics` (docs/memory.md has the names)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nagaya.models.memory import MemoryAnswer

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_HOST = (
    ("budget", "What machines may have of the host's memory in all."),
    ("left", "What of that nobody holds."),
    ("reserve", "What of that is to be kept free."),
)
_MACHINES = (
    ("balloon", "What a guest was asked to give."),
    ("actual", "What it says that it has given."),
    ("active", "What it uses as far as the broker knows."),
    ("target", "What it is to have next."),
)


def of_broker(answer: MemoryAnswer) -> Iterator[Metric]:
    """The budget, each machine's part of it, and what was moved."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    for name, text in _HOST:
        yield GaugeMetricFamily(f"nagaya_memory_{name}_bytes", text, value=getattr(answer, name))
    yield GaugeMetricFamily("nagaya_memory_short", "1 while memory is short.", value=float(answer.short))
    for name, text in _MACHINES:
        family = GaugeMetricFamily(f"nagaya_machine_memory_{name}_bytes", text, labels=("machine",))
        for one in answer.machines:
            family.add_metric((one.name,), getattr(one, name))
        yield family
    need = GaugeMetricFamily("nagaya_machine_memory_need", "1 while it needs more.", labels=("machine",))
    for one in answer.machines:
        need.add_metric((one.name,), float(bool(one.need)))
    yield need
    moved = CounterMetricFamily("nagaya_memory_moved_bytes", "Moved by the broker.", labels=("move",))
    for kind, size in answer.moved.items():
        moved.add_metric((kind,), size)
    yield moved
