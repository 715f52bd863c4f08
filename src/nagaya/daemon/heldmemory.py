"""How much of the host's memory is gone because of each machine that runs.

Its control group does not know: what the plane reads from a disk into a guest's memory is charged to the
plane, which touched it first. The file behind the guest's memory knows all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nagaya.daemon.parts import Parts
from nagaya.errors import NagayaError
from nagaya.resources.guestmemory import GuestMemory
from nagaya.resources.relocation import swap_in_use

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Held:
    """Host memory of one machine, in bytes; None: nobody knows.

    `guest` is what the file behind its guest's memory has in memory. Its control group counts `charged`, of
    that `shared` for the guest's memory. `helpers` is of processes that serve it alone (passt).
    """

    guest: int | None = None
    charged: int | None = None
    shared: int | None = None
    helpers: int = 0

    @property
    def own(self) -> int | None:
        """What its processes have beside the guest's memory."""
        return None if self.charged is None or self.shared is None else max(0, self.charged - self.shared)

    @property
    def by_plane(self) -> int | None:
        """What of the guest's memory is charged to the plane."""
        return None if self.guest is None or self.shared is None else max(0, self.guest - self.shared)

    @property
    def machine(self) -> int | None:
        """All but its helpers."""
        if self.guest is None or self.charged is None:
            return self.guest if self.charged is None else self.charged
        return max(self.charged, self.guest + (self.own or 0))

    @property
    def total(self) -> int | None:
        """All of it."""
        return None if self.machine is None else self.machine + self.helpers


class HeldMemory:
    """Keeps the memory files of machines open, by the machine's process; `close` it. For any thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._open: dict[int, GuestMemory] = {}
        self._one_at_a_time = threading.Lock()

    def of(self, one: Supervised) -> Held:
        """What there is now of a machine."""
        _, charged = self._parts.usage(one.row.id)
        group = self._parts.group(one.row.id)
        with self._one_at_a_time:
            guest = self._guest(one.process.id.pid) if one.process else None
        passts = self._parts.networks.private.pids()
        helpers = [passts[nic.mac] for nic in one.row.nics if nic.mac in passts]
        return Held(guest, charged, group.shared_bytes() if group else None, sum(map(_private, helpers)))

    def keep(self, pids: Collection[int]) -> None:
        """Let go of the files of all others."""
        with self._one_at_a_time:
            for pid in set(self._open).difference(pids):
                self._open.pop(pid).close()

    def close(self) -> None:
        """Let go of all."""
        self.keep(())

    def _guest(self, pid: int) -> int | None:
        try:
            if pid not in self._open:
                self._open[pid] = GuestMemory(pid)
            memory = self._open[pid]
            return memory.where().resident if swap_in_use() else memory.held()
        except NagayaError:
            return None


def _private(pid: int) -> int:
    """Bytes that a process has in memory and shares with no other; 0 if it has ended (proc_pid_statm(5))."""
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * _PAGE
