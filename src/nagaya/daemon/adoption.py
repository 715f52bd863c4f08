"""What a new daemon does with what the last one left: adopt what runs, finish or undo what was cut short."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from nagaya.daemon import hotmemory, livedisk, livenic
from nagaya.daemon.state import MachineRow, State
from nagaya.daemon.supervised import ALIVE, UP, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.daemon.writer import Writer
from nagaya.engines.engine import GuestState, ProcessId
from nagaya.errors import NagayaError
from nagaya.models.machine import MachineState
from nagaya.spec import MachineSpec

ATTEMPTS = 3  # daemons that may die over the start of one machine before it is given up

log = logging.getLogger("nagaya.daemon")


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, in clock ticks since the host's boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(process: ProcessId) -> bool:
    """Whether it is that very process, not another that got its number."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        return start_time(process.pid) == process.start_time
    finally:
        os.close(descriptor)


class Adoption:
    """One daemon's beginning."""

    def __init__(self, supervisor: Supervisor, writer: Writer) -> None:
        self._supervisor = supervisor
        self._writer = writer

    def remember(self) -> int:
        """Know all machines again, and watch those whose process lives. Returns how many live."""
        living = 0
        self._supervisor.leases.remember()
        for row in self._writer.state.machines():
            one = Supervised(row, MachineSpec.model_validate(row.spec))
            self._supervisor.add(one)
            process = _process(row)
            if process is not None and is_alive(process):
                self._supervisor.watch(one, process)
                living += 1
        return living

    async def settle(self) -> None:
        """Finish or undo what the last daemon was in the middle of, machine by machine, all at once."""
        boot_id = _boot_id()
        rebooted = self._writer.state.fact("boot_id") not in ("", boot_id)
        await self._writer.call(State.set_fact, "boot_id", boot_id)
        await self._prepare()
        try:
            await self._supervisor.check_devices()
        except NagayaError as error:
            log.warning("the plane cannot be asked for its devices: %s", error)
        await self._reconcile_leases()
        try:
            await self._supervisor.cabling.renew()
        except NagayaError as error:
            log.warning("networks cannot be looked after: %s", error)
        await asyncio.gather(*(self._settle(one, rebooted) for one in self._supervisor.all()))
        await livedisk.catch_up(self._supervisor)
        await livenic.catch_up(self._supervisor)
        await hotmemory.renew(self._supervisor)
        await self._renew_shares()
        await self._renew_rules()

    async def _renew_shares(self) -> None:
        """The last daemon may have died between the state and the plane."""
        try:
            await self._supervisor.shares.renew(one for one in self._supervisor.all() if one.row.state in UP)
        except NagayaError as error:
            log.warning("the plane cannot be told the machines' shares: %s", error)

    async def _renew_rules(self) -> None:
        """The same of the rules and cables of ports."""
        try:
            await self._supervisor.cabling.retell(lambda _plug: True)
        except NagayaError as error:
            log.warning("the plane cannot be told the rules of the machines' ports: %s", error)

    async def _reconcile_leases(self) -> None:
        supervisor = self._supervisor
        machines = supervisor.all()
        living = {
            one.row.id: (one.name, supervisor.devices(one)) for one in machines if one.row.state in ALIVE
        }
        known = frozenset(one.row.id for one in machines)
        try:
            await supervisor.leases.reconcile(living, known, supervisor.parts.plane.pid())
        except NagayaError as error:
            log.error("leases could not be written: %s", error)

    async def _prepare(self) -> None:
        """Start the helper processes. If a start was cut short, wait: the zygote knows what came of it."""
        prepared = self._supervisor.spawn(self._prepare_parts())
        if any(one.row.state is MachineState.STARTING for one in self._supervisor.all()):
            await asyncio.wait([prepared])

    async def _prepare_parts(self) -> None:
        try:
            await self._supervisor.parts.prepare()
        except (NagayaError, OSError) as error:
            log.warning("machines cannot be started yet: %s", error)

    async def _settle(self, one: Supervised, rebooted: bool) -> None:
        try:
            async with one.lock:
                await self._settle_locked(one, rebooted)
        except (NagayaError, OSError, ValueError) as error:
            log.warning("%s: %s", one.name, error)

    async def _settle_locked(self, one: Supervised, rebooted: bool) -> None:
        state = one.row.state
        if state is MachineState.DELETING:
            await self._supervisor.finish_delete(one)
        elif rebooted and one.process is None:
            await self._after_reboot(one)
        elif state is MachineState.STARTING:
            await self._start_again(one)
        elif one.process is not None:
            await self._check(one)
        elif state in ALIVE:
            await self._ended_meanwhile(one)
        elif one.row.retry_at is not None:
            delay = max(0.0, one.row.retry_at - time.time())
            await self._supervisor.endings.schedule(one, delay, one.row.restarts + 1)

    async def _after_reboot(self, one: Supervised) -> None:
        if one.row.state in ALIVE:
            await self._supervisor.move(
                one, MachineState.STOPPED, "ended", cause="the host restarted", pid=None, start_time=None
            )
        if one.spec.autostart:
            await self._supervisor.queue.launch(one, restarts=0)

    async def _start_again(self, one: Supervised) -> None:
        """A start was cut short: clear what there is and start, or give up if daemons keep dying over it."""
        await self._clear(one)
        attempts = one.row.attempts + 1
        if attempts < ATTEMPTS:
            await self._supervisor.starts.launch(one, one.row.restarts, attempts)
            return
        cause = f"{attempts} daemons ended while they started it; look at the daemon's log"
        await self._supervisor.move(one, MachineState.FAILED, "given up", cause=cause, attempts=0)

    async def _check(self, one: Supervised) -> None:
        """It runs: is it paused, was it being stopped, does the plane still have its devices?"""
        process = one.process
        if process is None:
            return
        if one.row.state is MachineState.STOPPING:
            self._supervisor.spawn(self._stop_again(one))
            return
        guest = await process.engine.state(self._supervisor.engine_machine(one), process.id)
        state = MachineState.PAUSED if guest is GuestState.PAUSED else MachineState.RUNNING
        if guest is not GuestState.GONE and one.row.state in UP and one.row.state is not state:
            await self._supervisor.move(one, state, "adopted", f"it is {state}")

    async def _stop_again(self, one: Supervised) -> None:
        try:
            await self._supervisor.stop(one.row.id)
        except NagayaError as error:
            log.warning("%s: %s", one.name, error)

    async def _ended_meanwhile(self, one: Supervised) -> None:
        """It ended while no daemon ran: take it as if it ended now."""
        process = _process(one.row)
        if process is None:
            await self._clear(one)
            cause = "it ended while nobody watched"
            await self._supervisor.move(one, MachineState.FAILED, "ended", cause=cause)
            return
        if one.row.state is MachineState.STOPPING:
            await self._clear(one)
            await self._supervisor.move(
                one, MachineState.STOPPED, "stopped", cause="", pid=None, start_time=None
            )
            return
        self._supervisor.watch(one, process)

    async def _clear(self, one: Supervised) -> None:
        machine = self._supervisor.engine_machine(one)
        await self._supervisor.engine_of(one).cleanup(machine)
        await self._supervisor.launcher.remove_devices(one.row, one.spec)
        one.process = None
        one.row = replace(one.row, pid=None, start_time=None)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _process(row: MachineRow) -> ProcessId | None:
    if row.pid is None or row.start_time is None:
        return None
    return ProcessId(row.pid, row.start_time)
