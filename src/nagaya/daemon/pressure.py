"""Looks at the pressure on machines and host every few seconds: the ledger of stalls, and alarms."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nagaya.models.pressure import AlarmInfo, HostPressureInfo, PressureInfo, StallInfo
from nagaya.models.waits import WaitInfo
from nagaya.resources.alarms import Alarm, Alarms, HostLook
from nagaya.resources.pressure import GroupPressure, HostPressure, Stall
from nagaya.resources.stalls import Look, Stalls

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

INTERVAL = 4.0  # s between looks; the kernel's own sums lag up to 2 s behind
FRESH = 1.0  # s: who asks within it is answered from the last look

log = logging.getLogger("nagaya.daemon")


class Pressure:
    """What the daemon knows of it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._stalls = Stalls()
        self._alarms = Alarms()
        self._read: dict[str, tuple[int, GroupPressure]] = {}  # CPU time, and what was read at it
        self._steal: tuple[float, int] | None = None  # when, and the host's stolen time then
        self._looking = asyncio.Lock()

    @property
    def alarms(self) -> Sequence[Alarm]:
        """What is the matter with the host now."""
        return self._alarms.raised

    async def mind(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        """Look now, unless somebody just did; new alarms become events."""
        async with self._looking:
            now = time.monotonic()
            if now - self._stalls.looked_at < FRESH:
                return
            machines = [one.row.id for one in self._supervisor.all() if one.process is not None]
            host, looks = await asyncio.to_thread(self._measure, machines)
            self._stalls.look(now, looks, host.busy_us, self._supervisor.memory.holders)
            self._judge(now, host)

    async def rows(self, since: int) -> list[WaitInfo]:
        """Who waited for a CPU or memory in the last `since` seconds; names are ids, and `%host`."""
        await self.look()
        found = self._stalls.rows(time.monotonic(), since)
        return [WaitInfo(row.waiter, row.cause, row.whom, row.wait_us, 0, row.resource) for row in found]

    def of(self, machine: str) -> GroupPressure | None:
        """What was read of a machine last, by its id."""
        known = self._read.get(machine)
        return known and known[1]

    def host(self) -> HostPressureInfo:
        """The host's own pressure now."""
        read = self._supervisor.parts.host_pressure()
        return HostPressureInfo(
            cpu=_stall(read.cpu),
            memory=_stall(read.memory),
            disk=_stall(read.io),
            steal_us=read.steal_us,
            swapped_in=read.swapped_in,
            swapped_out=read.swapped_out,
            major_faults=read.major_faults,
            memory_available=read.memory_available,
            alarms=[AlarmInfo(**asdict(alarm)) for alarm in self.alarms],
        )

    def _measure(self, machines: Sequence[str]) -> tuple[HostPressure, Mapping[str, Look]]:
        """In a thread. A machine that used no CPU since the last look did not wait: no more of it is read."""
        parts = self._supervisor.parts
        looks: dict[str, Look] = {}
        read: dict[str, tuple[int, GroupPressure]] = {}
        for machine in machines:
            used = parts.usage(machine)[0]
            if used is None:
                continue
            known = self._read.get(machine)
            group = known[1] if known and known[0] == used else parts.pressure(machine)
            read[machine] = (used, group)
            looks[machine] = _look(used, group)
        self._read = read
        return parts.host_pressure(), looks

    def _judge(self, now: float, host: HostPressure) -> None:
        before, self._steal = self._steal, None if host.steal_us is None else (now, host.steal_us)
        stolen = 0.0
        if before and self._steal and host.busy_us:
            stolen = (self._steal[1] - before[1]) / 1e6 / (now - before[0]) / len(host.busy_us)
        look = HostLook(host, max(0.0, stolen), self._supervisor.capacity.promised())
        texts = {alarm.name: alarm.text for alarm in self.alarms}
        for name, raised in self._alarms.judge(look):
            texts |= {alarm.name: alarm.text for alarm in self.alarms}
            log.log(logging.WARNING if raised else logging.INFO, "host: %s: %s", name, texts[name])
            self._supervisor.events.publish(
                {"event": "pressure", "name": name, "raised": raised, "text": texts[name]}
            )


def pressure_info(group: GroupPressure) -> PressureInfo:
    """What the API says of one machine."""
    return PressureInfo(
        cpu_wait_us=group.cpu_wait_us,
        throttled_us=group.throttled_us,
        memory_stall_us=group.memory_stall_us,
        disk_stall_us=group.io_stall_us,
        major_faults=group.major_faults,
        memory_limit_hits=group.limit_hits,
        swap=group.swap,
    )


def _look(used_us: int, group: GroupPressure) -> Look:
    return Look(
        used_us=used_us,
        cpus=group.cpus,
        wait_us=group.cpu_wait_us,
        queue_us=group.cpu_queue_us,
        throttled_us=group.throttled_us,
        memory_us=group.memory_stall_us,
        limit_hits=group.limit_hits,
    )


def _stall(stall: Stall | None) -> StallInfo | None:
    return None if stall is None else StallInfo(**asdict(stall))
