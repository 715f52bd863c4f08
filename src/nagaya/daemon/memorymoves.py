"""The record of what the broker moved, why, and what came of it: in the state, the newest thousand.

The broker does not wait for the state's disk. What it moves while a write is under way, and what could not be
written, is in the next one: on a full disk it is tried again round after round. So a daemon that is killed
forgets the last moments at most; and of a move that it made then, what came of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nagaya.daemon.state import MOVES_KEPT, State
from nagaya.daemon.writer import Writer
from nagaya.errors import NagayaError
from nagaya.models.memory import MemoryMove
from nagaya.resources.workingset import MachineMemory

EFFECT_S = 5.0  # after a move its effect is written down, at the latest

log = logging.getLogger("nagaya.daemon")


@dataclass(slots=True)
class _Open:
    """A move, its number, when it began, and the machine before it; `open` until its effect is known."""

    number: int
    move: MemoryMove
    began: float
    before: MachineMemory
    open: bool = True


class MemoryMoves:
    """The moves of one daemon and of those before it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._moves = writer.state.memory_moves()
        self._number = max(self._moves, default=0)
        self._open: list[_Open] = []
        self._unsaved: dict[int, MemoryMove] = {}
        self._saving: asyncio.Task[None] | None = None
        self._failed = False

    def since(self, seconds: float) -> list[MemoryMove]:
        """Those of the last `seconds`, by the host's clock (earlier daemons had no other in common)."""
        now = time.time()
        return [move for move in self._moves.values() if now - move.at <= seconds]

    def add(self, move: MemoryMove, at: float, before: MachineMemory) -> None:
        """Write down a move made `at`, by the broker's clock, of a machine that was as `before`."""
        self._number += 1
        self._open.append(_Open(self._number, move, at, before))
        self._note(self._number, move)
        if len(self._moves) > MOVES_KEPT:
            del self._moves[min(self._moves)]

    def settle(self, at: float, machines: Iterable[MachineMemory]) -> None:
        """Write down what came of moves: when all has come, or after a while.

        Of a machine that ended nobody knows.
        """
        now = {one.name: one for one in machines}
        self._open = [one for one in self._open if one.move.machine in now]
        for one in self._open:
            effect = _effect(one, at, now[one.move.machine])
            if effect is not None:
                one.open = False
                self._note(one.number, effect)
        self._open = [one for one in self._open if one.open]

    def save(self) -> None:
        """Begin to write what is not on disk yet, unless that is under way."""
        if self._unsaved and (self._saving is None or self._saving.done()):
            moves, self._unsaved = self._unsaved, {}
            self._saving = asyncio.ensure_future(self._save(moves))

    async def close(self) -> None:
        """Write what is left."""
        if self._saving is not None:
            await self._saving
        moves, self._unsaved = self._unsaved, {}
        await self._save(moves)

    def _note(self, number: int, move: MemoryMove) -> None:
        if number in self._moves or number == self._number:
            self._moves[number] = self._unsaved[number] = move

    async def _save(self, moves: Mapping[int, MemoryMove]) -> None:
        try:
            await self._writer.call(State.save_memory_moves, moves)
            self._failed = False
        except NagayaError as error:
            kept = {number: move for number, move in moves.items() if number in self._moves}
            self._unsaved = kept | self._unsaved
            if not self._failed:  # said once, not with every round
                self._failed = True
                log.warning("moves of memory cannot be recorded, it is tried again: %s", error)


def _effect(record: _Open, at: float, one: MachineMemory) -> MemoryMove | None:
    """The move with its effect; None while that is to be seen."""
    move, past, before = record.move, at - record.began, record.before.resident
    came = min(_came(record, one), move.bytes)
    if came < move.bytes and past < EFFECT_S:
        return None
    fell = None if before is None or one.resident is None else before - one.resident
    return replace(move, came=came, resident=fell, after=round(past, 3))


def _came(record: _Open, one: MachineMemory) -> int:
    if record.move.kind == "page-out":
        return max(0, (record.before.resident or 0) - one.holds)
    moved = one.actual - record.before.actual
    return max(0, moved if record.move.kind == "take" else -moved)
