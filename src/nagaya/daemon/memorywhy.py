"""`why --memory`: what was moved from and to a machine, in words, and which knob would change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nagaya.daemon.stallwords import MOST_WEIGHT
from nagaya.daemon.waits import span
from nagaya.errors import ConflictError
from nagaya.models.memory import MachineMemoryInfo, MemoryAnswer, MemoryMove, MemoryWhy
from nagaya.models.waits import Advice
from nagaya.units import format_size, human_size

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

_NAMED = 3  # of those who have more than their share
_DONE = {"take": "taken from it", "give": "given back to it", "page-out": "paged out"}


async def why(supervisor: Supervisor, name: str, since: int) -> MemoryWhy:
    """Why a machine that runs has the memory that it has. Raises `NotFoundError` and `ConflictError`."""
    one = supervisor.get(name)
    now = await supervisor.memory.show()
    mine = of(now, one)
    moves = [move for move in supervisor.memory.moves.since(since) if move.machine == one.name]
    words = [*_now(mine), *_others(mine, now), *_host(now), *_past(mine.name, moves, since)]
    return MemoryWhy(one.name, since, moves, words, list(_advice(mine, one)))


def of(now: MemoryAnswer, one: Supervised) -> MachineMemoryInfo:
    """What is known of one machine. Raises `ConflictError` if it does not run."""
    for row in now.machines:
        if row.name == one.name:
            return row
    raise ConflictError(
        f"{one.name} is {one.row.state}, it has no memory", hint=f"nagaya start {one.name}", machine=one.name
    )


def _now(one: MachineMemoryInfo) -> Iterator[str]:
    has = one.size - one.actual
    part = human_size(has) if one.actual else "all"
    gave = f": its guest gave {human_size(one.actual)}" if one.actual else ""
    yield f"{one.name} has {part} of its {human_size(one.size)}{gave}."
    resident = "" if one.resident is None else f", and the host holds {human_size(one.resident)} for it"
    yield f"With a margin it uses about {human_size(one.active)}{resident}."
    if one.need:
        yield f"It needs more: {one.need}."
    if not one.driver:
        yield "Its guest has no driver for the balloon, so it never gives memory."
    elif one.refuses:
        yield f"Its guest was asked for {human_size(one.balloon)} and does not give it."


def _others(one: MachineMemoryInfo, now: MemoryAnswer) -> Iterator[str]:
    """Who holds what it lacks."""
    beyond = {row.name: (row.resident or 0) - row.target for row in now.machines if row.name != one.name}
    most = sorted((name for name in beyond if beyond[name] > 0), key=lambda name: -beyond[name])[:_NAMED]
    if one.need and most:
        yield f"Beyond their shares: {', '.join(f'{name} {human_size(beyond[name])}' for name in most)}."


def _host(now: MemoryAnswer) -> Iterator[str]:
    of = f"{human_size(now.left)} of {human_size(now.budget)} that machines may have are left"
    if now.left < 0:
        of = (
            f"machines have {human_size(-now.left)} more than the {human_size(now.budget)} that they may have"
        )
    if not now.broker:
        yield f"The broker is off: nothing moves; {of}."
    elif now.short:
        roomy = now.left >= now.reserve and now.room > now.left
        kept = f"guests could grow by {human_size(now.room)} at once" if roomy else ""
        yield f"Memory is short: {of}, and {kept or f'{human_size(now.reserve)} should be left'}."
    else:
        yield f"Memory suffices: {of}."


def _past(name: str, moves: Sequence[MemoryMove], since: int) -> Iterator[str]:
    if not moves:
        yield f"Nothing was moved from or to {name} in {span(since)}."
    for kind, said in _DONE.items():
        some = [move for move in moves if move.kind == kind]
        if not some:
            continue
        times = "once" if len(some) == 1 else f"in {len(some)} moves"
        yield (
            f"In {span(since)} {human_size(sum(move.bytes for move in some))} were {said} {times}, "
            f"last because {some[-1].reason}."
        )


def _advice(one: MachineMemoryInfo, machine: Supervised) -> Iterator[Advice]:
    memory = machine.spec.memory
    if one.limit is not None and one.target >= one.limit and one.need:
        if memory.limit is not None:
            doubled = format_size(memory.limit * 2)
            yield Advice(f"nagaya set {one.name} memory.limit={doubled}", "doubles the limit that it is at")
        if memory.size < one.size:
            whole = format_size(one.size)
            yield Advice(f"nagaya set {one.name} memory.size={whole}", "gives back what it started with")
    if not one.actual and not one.need:
        return
    if one.floor < one.active:
        floor = format_size(min(one.size, -(-one.active >> 20) << 20))
        yield Advice(
            f"nagaya set {one.name} memory.reservation={floor}",
            "it keeps what it uses, whatever the others do",
        )
    if one.weight < MOST_WEIGHT and one.target < one.size:
        weight = min(MOST_WEIGHT, one.weight * 2)
        yield Advice(f"nagaya set {one.name} memory.weight={weight}", "doubles its share beside the others'")
    if one.need and not one.balloon:
        yield Advice(f"nagaya stop {one.name}", f"and give it more than {human_size(one.size)}: memory.size")
