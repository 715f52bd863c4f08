"""How machines start.

Record it, overlays, directories, devices in the plane, the engine's process, record that. A daemon that dies
on the way leaves `starting` behind; the next one clears what is there and starts again (`adoption`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from nagaya.daemon import failpoint
from nagaya.daemon.diskfiles import keys
from nagaya.engines.engine import Machine
from nagaya.errors import NagayaError
from nagaya.models.machine import MachineState

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

log = logging.getLogger("nagaya.daemon")


class Starts:
    """Starts processes, and clears away what a start that failed has left."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def launch(self, one: Supervised, restarts: int, attempts: int = 0) -> None:
        """The start itself; on failure nothing is left but a failed machine with the cause."""
        engine = self._supervisor.parts.engine(one.spec)
        engine.check(one.spec)
        kernel = self._supervisor.parts.kernels.choose(one.spec)
        self._supervisor.disks.require_free(keys(one.row, one.spec), to_start=True)
        self._supervisor.capacity.admit(one, one.spec)
        await self._supervisor.move(
            one,
            MachineState.STARTING,
            "starting",
            cause="",
            kernel=kernel.name,
            engine=engine.name,
            pid=None,
            start_time=None,
            restarts=restarts,
            attempts=attempts,
            retry_at=None,
        )
        failpoint.reach("start:recorded")
        machine = self._supervisor.launcher.machine(one.row, one.spec, kernel)
        try:
            await self._supervisor.launcher.make_disks(one.row, one.spec)
            await self._supervisor.launcher.make_directories(machine)
            failpoint.reach("start:directories")
            await self._supervisor.shares.add_devices(one, machine)
            failpoint.reach("start:devices")
            process = await engine.start(machine)
            failpoint.reach("start:engine")
            await self._supervisor.move(
                one,
                MachineState.RUNNING,
                "running",
                f"process {process.pid}",
                pid=process.pid,
                start_time=process.start_time,
                started_at=time.time(),
                booted=one.spec.memory.size,
            )
        except (NagayaError, OSError, ValueError) as error:
            await self._undo(one, machine)
            await self._fail(one, error)
            raise
        failpoint.reach("start:running")
        self._supervisor.watch(one, process)

    async def _undo(self, one: Supervised, machine: Machine) -> None:
        try:
            await self._supervisor.engine_of(one).cleanup(machine)
            await self._supervisor.launcher.remove_devices(one.row, one.spec)
            await self._supervisor.launcher.remove_run(one.row)
        except (NagayaError, OSError):
            log.exception("%s: leftovers of a failed start remain until the next one", one.name)

    async def _fail(self, one: Supervised, error: Exception) -> None:
        cause = error.message if isinstance(error, NagayaError) else str(error)
        try:
            await self._supervisor.move(
                one, MachineState.FAILED, "start failed", cause, cause=cause, pid=None, start_time=None
            )
        except NagayaError:  # the disk is full, say; the next daemon finds `starting` and tries again
            log.exception("%s: its failed start could not be recorded", one.name)
            one.row = replace(one.row, state=MachineState.FAILED, cause=cause, pid=None, start_time=None)
            self._supervisor.publish(one)
