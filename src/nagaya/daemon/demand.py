"""Recording what machines ask for: every ten seconds what they use, every minute how they use their disks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from nagaya.daemon.demandstore import DemandStore
from nagaya.daemon.supervised import UP
from nagaya.daemon.usage import usage
from nagaya.errors import NagayaError
from nagaya.models.demand import DemandAnswer, DemandHour, DemandSample
from nagaya.models.usage import MachineUsage
from nagaya.paths import Paths
from nagaya.resources.demand import HOUR, INTERVAL, Totals, between

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

PATTERNS_EVERY = 6  # samples

T = TypeVar("T")

log = logging.getLogger("nagaya.daemon")


class Demand:
    """The recorder: a thread of its own for the file, opened when it is first needed."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.state / "demand.sqlite"
        self._thread = ThreadPoolExecutor(1, "demand")
        self._store: DemandStore | None = None
        self._before: dict[str, Totals] = {}

    async def call(self, work: Callable[[DemandStore], T]) -> T:
        """Run `work` with the store, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._opened()))

    async def mind(self, supervisor: Supervisor) -> None:
        """Record for ever."""
        turn = 0
        while True:
            await asyncio.sleep(INTERVAL)
            turn += 1
            try:
                await self.record(supervisor, patterns=turn % PATTERNS_EVERY == 0)
            except (NagayaError, OSError) as error:
                log.warning("the demand of machines could not be recorded: %s", error)

    async def record(self, supervisor: Supervisor, *, patterns: bool, at: int | None = None) -> None:
        """Take a sample of each machine that runs, and with `patterns` what its disks asked for."""
        now = int(time.time()) if at is None else at
        if not any(one.row.state in UP for one in supervisor.all()) and not self._before:
            return
        answer = await usage(supervisor, 1)
        totals = {one.id: _totals(answer.at, one) for one in answer.machines if one.state in UP}
        before, self._before = self._before, totals
        samples = {}
        for machine, after in totals.items():
            found = between(before[machine], after, now) if machine in before else None
            if found is not None:
                samples[machine] = found
        await self.call(lambda store: store.add(now, samples))
        if patterns:
            demand = await supervisor.parts.plane.demand(anew=True)
            rates = {one.worker: (one.capacity_iops, one.capacity) for one in answer.arbiters}
            known = {one.row.id for one in supervisor.all()}
            await self.call(lambda store: store.add_patterns(now, demand, rates))
            await self.call(lambda store: store.keep(known))

    async def of(self, supervisor: Supervisor, name: str) -> DemandAnswer:
        """What is known of one machine. Raises `NotFoundError`."""
        one = supervisor.get(name)
        hours, samples = await self.call(lambda store: (store.hours(one.row.id), store.samples(one.row.id)))
        return DemandAnswer(
            name=one.name,
            interval=INTERVAL,
            hours=[DemandHour.of(hour.hour * HOUR, hour) for hour in hours],
            samples=[DemandSample.of(sample) for sample in samples],
        )

    def close(self) -> None:
        """Finish what goes on and close the file."""
        self._thread.shutdown(wait=True)
        if self._store is not None:
            self._store.close()
            self._store = None

    def _opened(self) -> DemandStore:
        if self._store is None:
            self._store = DemandStore(self._path)
        return self._store


def _totals(at: float, one: MachineUsage) -> Totals:
    return Totals(
        at=at,
        cpu_us=one.cpu_us or 0,
        memory=one.memory or 0,
        requests=sum(disk.reads + disk.writes + disk.flushes + disk.discards for disk in one.disks),
        disk=sum(disk.read_bytes + disk.written_bytes for disk in one.disks),
        received=sum(nic.rx_bytes for nic in one.nics),
        sent=sum(nic.tx_bytes for nic in one.nics),
    )
