"""How much of the host's memory is gone because of each machine that runs.

Its control group does not know: what the plane reads from a disk into a guest's memory is charged to the
plane, which touched it first. The file behind the guest's memory knows all of it.
"""

from __future__ import annotations

from collections.abc import Collection

from nagaya.errors import NagayaError
from nagaya.resources.guestmemory import GuestMemory
from nagaya.resources.relocation import swap_in_use


class HeldMemory:
    """Keeps the memory files of machines open, by the machine's process; `close` it."""

    def __init__(self) -> None:
        self._open: dict[int, GuestMemory] = {}

    def of(self, pid: int) -> int | None:
        """Bytes in the host's memory that the guest of this process has; None if nobody may look, or can."""
        try:
            if pid not in self._open:
                self._open[pid] = GuestMemory(pid)
            memory = self._open[pid]
            return memory.where().resident if swap_in_use() else memory.held()
        except NagayaError:
            return None

    def keep(self, pids: Collection[int]) -> None:
        """Let go of all others."""
        for pid in set(self._open).difference(pids):
            self._open.pop(pid).close()

    def close(self) -> None:
        """Let go of all."""
        self.keep(())
