"""Merging the layers of a disk while machines run on it.

What the layer below has is copied into the one above, which reads the same before, during and after that, so
guests may read it meanwhile. Then the record says that the layer below is not needed, and the plane lets go
of it. A daemon that dies in between costs nothing: the record is right before and after, and the next daemon
has the plane serve what it says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from nagaya.daemon import livedisk
from nagaya.daemon.diskfiles import keys
from nagaya.daemon.supervised import UP, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.images.chain import DiskFiles, Record
from nagaya.images.merge import Mover, joined, numbered
from nagaya.progress import Progress


@dataclass(frozen=True, slots=True)
class LiveDisk:
    """The disk `key`, on which machines of `users` may run, start and stop."""

    supervisor: Supervisor
    users: Sequence[Supervised]
    key: str
    files: DiskFiles

    async def merge(self, mover: Mover, progress: Progress) -> None:
        """Merge the layers that no snapshot names."""
        record = await asyncio.to_thread(self.files.record)
        if record.top_is_on_nameless():
            record = await self._serve(await asyncio.to_thread(self.files.push, record))
        count = 0
        while (pair := record.mergeable()) is not None:
            count += 1
            upper, lower = pair
            chain = await asyncio.to_thread(self.files.nodes, record, upper)
            if not chain[0].path.samefile(chain[1].path):  # a killed merge at rest came so far
                await mover.pull(chain, numbered(progress, count))
            record = await self._serve(joined(record, upper, lower))

    async def _serve(self, record: Record) -> Record:
        """Make `record`, which reads the same, the truth, also for machines that run now."""
        async with self._still():
            record = await asyncio.to_thread(self.files.write, record)
            for one in self.users:
                if one.row.state in UP and one.process is not None:
                    index = keys(one.row, one.spec).index(self.key)
                    await livedisk.change_over(self.supervisor, one, index)
        return record

    @contextlib.asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """No machine starts, stops or changes meanwhile."""
        async with contextlib.AsyncExitStack() as stack:
            for one in sorted(self.users, key=lambda one: one.row.id):
                await stack.enter_async_context(one.lock)
            yield
