"""What a machine waited for at the CPUs and for memory, in words, and what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nagaya.models.waits import Advice, WaitInfo
from nagaya.resources.stalls import HOST
from nagaya.units import human_time

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised

MOST_WEIGHT = 10000
WORTH_SAYING = 0.005  # of the whole: less reads as 0%
RESERVED = 0.5  # of a CPU, to begin with


def words(one: Supervised, rows: Sequence[WaitInfo], since: int, when: str) -> Iterator[str]:
    """Of the rows of "cpu" or of "memory", the longest first; `when` is `the last minute`."""
    total = sum(row.wait_us for row in rows)
    if not total:
        return
    part = total / since / 1e6
    what = "a CPU" if rows[0].resource == "cpu" else "memory"
    yield f"{one.name} waited {human_time(total)} for {what} in {when} ({part:.0%} of the time)."
    for row in rows:
        if row.wait_us < total * WORTH_SAYING:
            continue
        because = _cpu(one, row) if row.resource == "cpu" else _memory(row)
        yield f"{human_time(row.wait_us)} ({row.wait_us / total:.0%}) {because}"


def advice(one: Supervised, rows: Sequence[WaitInfo]) -> Iterator[Advice]:
    """Commands that would shorten the waits of `rows`, which are of one resource and worth the word."""
    name, knobs = one.name, one.spec.cpu
    rivals = [row.whom for row in rows if row.cause == "machine" and row.resource == "cpu"]
    machines = [whom for whom in rivals if whom != HOST]
    if machines and knobs.weight < MOST_WEIGHT:
        weight = min(MOST_WEIGHT, knobs.weight * 2)
        yield Advice(f"nagaya set {name} cpu.weight={weight}", f"doubles its share beside {machines[0]}'s")
    reserved = min(RESERVED, knobs.limit or RESERVED)
    if HOST in rivals and knobs.reservation < reserved:  # weights count among machines only
        effect = "it gets that much, whatever the host's programs do"
        yield Advice(f"nagaya set {name} cpu.reservation={reserved:g}", effect)
    if any(row.resource == "memory" and row.cause == "machine" for row in rows):
        yield Advice(f"nagaya why {name} --memory", "says what it has and needs, and which knob helps")
    for row in rows:
        if row.resource == "cpu" and row.cause == "limit" and knobs.limit is not None:
            yield Advice(f"nagaya set {name} cpu.limit={knobs.limit * 2:g}", "doubles the limit")
        elif row.resource == "memory" and row.cause == "limit":
            yield Advice(f"nagaya set {name} memory.size=...", "at its next start: its guest wants more")
        elif row.resource == "memory" and row.cause == "device":
            yield Advice(
                "nagaya top --sort memory", "shows who has the host's memory; stopping one gives it back"
            )


def _cpu(one: Supervised, row: WaitInfo) -> str:
    if row.cause == "limit":
        limit = one.spec.cpu.limit
        return (
            "at a limit that it no longer has." if limit is None else f"at its limit (cpu.limit={limit:g})."
        )
    if row.cause == "device":
        return "for CPUs on which it ran itself, or which the host's own host took."
    if row.whom == HOST:
        return "because programs of the host ran."
    return f"because {row.whom} ran."


def _memory(row: WaitInfo) -> str:
    if row.cause == "limit":
        return "at the limit of its control group, which has room for its guest's memory and overhead."
    if row.whom == HOST:
        return "because programs of the host hold memory that is the machines'."
    if row.cause == "machine":
        return f"because {row.whom} holds more than its share."
    return "because the host had too little, and took back pages that were needed again."
