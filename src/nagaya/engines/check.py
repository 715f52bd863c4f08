"""What an engine refuses, field by field."""

from __future__ import annotations

from collections.abc import Iterable

from nagaya.errors import UnsupportedError
from nagaya.spec import CpuKnobs, MachineSpec, Memory
from nagaya.units import human_size

Refusal = tuple[bool, str, object, str]  # whether it is wrong, the field, its value, what is allowed


def refuse(spec: MachineSpec, engine: str, rows: Iterable[Refusal]) -> None:
    """Raise `UnsupportedError` for the first row that is wrong, or for a knob that no engine turns yet."""
    for wrong, field, value, allowed in (*rows, *_unturned(spec)):
        if wrong:
            raise UnsupportedError(
                f"{spec.name}: {field}: {value} is not possible with engine {engine}, {allowed}", field=field
            )


def _unturned(spec: MachineSpec) -> tuple[Refusal, ...]:
    knobs = "not built yet: leave it out"
    limit = spec.memory.limit
    return (
        (
            limit is not None and limit < spec.memory.size,
            "memory.limit",
            human_size(limit or 0),
            f"at least memory.size, {human_size(spec.memory.size)}: there is no balloon yet",
        ),
        (
            spec.memory.reservation > Memory().reservation,
            "memory.reservation",
            human_size(spec.memory.reservation),
            "leave it out: all of memory.size is kept for a machine that runs",
        ),
        (spec.memory.weight != Memory().weight, "memory.weight", spec.memory.weight, knobs),
        (spec.cpu.reservation > CpuKnobs().reservation, "cpu.reservation", spec.cpu.reservation, knobs),
    )
