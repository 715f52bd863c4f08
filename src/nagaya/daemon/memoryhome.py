"""Keeps memory where its specification wants it: in huge pages (`memory.huge`), on a node (`memory.node`).

A guest gets new memory in small pages, from wherever its CPU is. So machines that want it otherwise are
looked at now and then, and what came since is moved, by the same orders as `nagaya memory move`: into huge
pages once the guest's memory has stopped to grow; to the node at first, and when some has strayed. Where new
memory comes from is said at once when it is set (`nagaya.daemon.shares`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nagaya.daemon import failpoint
from nagaya.daemon.relocation import Order, relocate
from nagaya.daemon.supervised import UP
from nagaya.errors import NagayaError
from nagaya.knobs import MIB, Memory
from nagaya.models.relocation import MemoryPlace
from nagaya.resources.guestmemory import GuestMemory, Where

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

INTERVAL = 10.0  # s between looks; one costs some milliseconds for each GiB
WORTH = 8 * MIB  # less is left where it is
STABLE_SHARE = 32  # memory that grew by less than one part in so many since the last look is stable

log = logging.getLogger("nagaya.daemon")


@dataclass(slots=True)
class Known:
    """What is known of the memory of one machine's process, in bytes."""

    pid: int
    resident: int = 0  # at the last look
    small: int = 0  # what the last order left in small pages
    strayed: int = 0  # what the last order left elsewhere
    node: int | None = None  # the node that it was sent to
    trouble: str = ""

    def orders(self, memory: Memory, where: Where) -> Iterator[Order]:
        """What is to be done now, if anything."""
        if memory.node is not None and (
            memory.node != self.node or _strayed(where, memory.node) - self.strayed >= WORTH
        ):
            yield Order(node=memory.node)
        grown, self.resident = abs(where.resident - self.resident), where.resident
        stable = grown <= max(WORTH, where.resident // STABLE_SHARE)
        if memory.huge and stable and where.resident - where.huge - self.small >= WORTH:
            yield Order(huge=True)

    def done(self, order: Order, after: MemoryPlace) -> None:
        """What an order left is not tried again: a page may be in use, or its piece have holes."""
        if order.node is not None:
            self.node = order.node
            self.strayed = sum(size for node, size in after.nodes.items() if int(node) != order.node)
        else:
            self.small = after.resident - after.huge


class MemoryHome:
    """Looks after the machines that want it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._known: dict[str, Known] = {}

    async def mind(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Look at each such machine once; one that a command is at work on has to wait for the next look."""
        known: dict[str, Known] = {}
        for one in self._supervisor.all():
            if one.row.state not in UP or one.process is None:
                continue
            if not (one.spec.memory.huge or one.spec.memory.node is not None):
                continue
            known[one.row.id] = mine = self._of(one)
            if not one.lock.locked():
                await self._keep(one, mine)
        self._known = known

    def _of(self, one: Supervised) -> Known:
        pid = one.require_process().id.pid
        known = self._known.get(one.row.id)
        return known if known is not None and known.pid == pid else Known(pid)

    async def _keep(self, one: Supervised, known: Known) -> None:
        try:
            where = await asyncio.to_thread(_where, known.pid)
            for order in known.orders(one.spec.memory, where):
                answer = await relocate(self._supervisor, one.name, order)
                failpoint.reach("home:moved")
                known.done(order, answer.after)
            known.trouble = ""
        except (NagayaError, OSError) as error:
            said = error.message if isinstance(error, NagayaError) else str(error)
            if said != known.trouble:  # said once
                known.trouble = said
                log.warning("%s: its memory stays where it is: %s", one.name, said)
                await self._supervisor.note(one, "memory not relocated", said)


def _where(pid: int) -> Where:
    with GuestMemory(pid) as memory:
        return memory.where()


def _strayed(where: Where, node: int) -> int:
    return sum(size for one, size in where.nodes.items() if one != node)
