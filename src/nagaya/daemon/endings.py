"""How machines end, and what follows: cleaning up, a guest's reboot, the restart policy."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from nagaya.daemon import failpoint
from nagaya.engines.engine import Exit, ExitReason, Machine
from nagaya.errors import NagayaError
from nagaya.models.machine import MachineState

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Process, Supervised
    from nagaya.daemon.supervisor import Supervisor

AGENT_TIME = 0.3  # s that the guest agent has to answer before the power button is pressed instead
ASK_PAUSE = 0.5  # s between attempts while nobody in the guest listens: it is still booting
BACKOFF_FIRST = 1.0  # s
BACKOFF_LIMIT = 60.0  # s
STEADY = 60.0  # s of running after which earlier restarts no longer count
PROMPT_REBOOTS = 3  # that a guest may do in a row before it has to wait like one that fails

log = logging.getLogger("nagaya.daemon")


class Endings:
    """Ends processes, watches them, and decides what comes after their end."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def watch(self, one: Supervised, process: Process) -> None:
        """Wait for the end of `process`; handle it unless a command that waits for it too does."""
        machine = self._supervisor.engine_machine(one)
        try:
            ended = await process.engine.wait(machine, process.id)
        except NagayaError as error:
            ended = Exit(ExitReason.UNKNOWN, f"its end could not be watched: {error.message}")
        process.ended.set_result(ended)
        async with one.lock:
            if one.process is process:
                one.returns = not process.asked and ended.reason is ExitReason.REBOOT
                try:
                    await self.finish(one, process, process.asked)
                    if not process.asked:
                        await self._follow(one, ended)
                finally:
                    one.returns = False

    async def finish(self, one: Supervised, process: Process, asked: str = "") -> None:
        """Clean up after `process` and record its end; `asked` says in a word which command ended it."""
        if one.process is not process:
            return
        ended = process.ended.result()
        machine = self._supervisor.engine_machine(one)
        await process.engine.cleanup(machine)
        await self._supervisor.launcher.remove_devices(one.row, one.spec)
        failpoint.reach("stop:cleaned")
        one.process = None
        self._supervisor.memory.look_soon()  # it has the guest's memory open
        wanted = asked or (not process.doom and ended.reason in (ExitReason.POWEROFF, ExitReason.REBOOT))
        await self._supervisor.move(
            one,
            MachineState.STOPPED if wanted else MachineState.FAILED,
            asked or f"ended: {ended.reason}",
            ended.detail,
            cause=process.doom or _cause(ended, asked),
            pid=None,
            start_time=None,
        )

    async def stop(self, one: Supervised, within: float) -> None:
        """Ask the guest to shut down, end it after `within` seconds; the lock is held."""
        process = one.require_process()
        machine = self._supervisor.engine_machine(one)
        if one.row.state is MachineState.PAUSED and within > 0:
            await process.engine.resume(machine, process.id)
        await self._supervisor.move(one, MachineState.STOPPING, "stopping", f"within {within:g} s")
        failpoint.reach("stop:recorded")
        asked = "stopped"
        asking = asyncio.create_task(self._ask_to_shut_down(one, process, machine, within))
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(process.ended)
        except TimeoutError:
            asked = "killed" if within == 0 else f"killed: it did not shut down within {within:g} s"
            await process.engine.kill(machine, process.id)
            await asyncio.shield(process.ended)
        finally:
            asking.cancel()
        failpoint.reach("stop:ended")
        await self.finish(one, process, asked=asked)

    def forget_retry(self, one: Supervised) -> None:
        """A command takes over: no restart by policy."""
        if one.retry is not None:
            one.retry.cancel()
            one.retry = None

    async def schedule(self, one: Supervised, delay: float, restarts: int) -> None:
        """Start the machine in `delay` seconds, unless somebody does something with it before."""
        await self._supervisor.move(
            one, one.row.state, "restart planned", f"in {delay:g} s", retry_at=time.time() + delay
        )
        one.retry = self._supervisor.spawn(self._retry(one, delay, restarts))

    async def _ask_to_shut_down(
        self, one: Supervised, process: Process, machine: Machine, within: float
    ) -> None:
        """Through the guest agent if it answers at once, else by the power button, until one is heard."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            agent = self._supervisor.parts.agent(one.name, machine.paths)
            try:
                await agent.ping(AGENT_TIME)
                await agent.shutdown()
                break
            except (NagayaError, OSError):
                pass
            finally:
                await agent.close()
            try:
                await process.engine.request_shutdown(machine, process.id)
                break
            except NagayaError as error:
                log.info("%s: not asked to shut down yet: %s", one.name, error.message)
            await asyncio.sleep(ASK_PAUSE)
        failpoint.reach("stop:asked")

    async def _retry(self, one: Supervised, delay: float, restarts: int) -> None:
        await asyncio.sleep(delay)
        async with one.lock:
            one.retry = None
            await self._start(one, restarts)

    async def _follow(self, one: Supervised, ended: Exit) -> None:
        """After an end that no command asked for; the lock is held."""
        ran = time.time() - (one.row.started_at or 0.0)
        restarts = 0 if ran > STEADY else one.row.restarts
        if ended.reason is ExitReason.REBOOT and restarts < PROMPT_REBOOTS:
            await self._start(one, restarts + 1)
        elif ended.reason is ExitReason.REBOOT or _again(one, ended):
            free = PROMPT_REBOOTS if ended.reason is ExitReason.REBOOT else 0
            delay = min(BACKOFF_LIMIT, BACKOFF_FIRST * 2.0 ** min(max(0, restarts - free), 10))
            await self.schedule(one, delay, restarts + 1)

    async def _start(self, one: Supervised, restarts: int) -> None:
        try:
            await self._supervisor.queue.launch(one, restarts)
        except (NagayaError, OSError, ValueError) as error:
            log.warning("%s: could not be started again: %s", one.name, error)


def _again(one: Supervised, ended: Exit) -> bool:
    policy = one.spec.restart
    return policy == "always" or (policy == "on-failure" and ended.reason is not ExitReason.POWEROFF)


def _cause(ended: Exit, asked: str) -> str:
    if asked in ("stopped", "killed") or (not asked and ended.reason is ExitReason.POWEROFF):
        return ""
    if asked:
        return asked
    words = {
        ExitReason.REBOOT: "the guest restarts",
        ExitReason.PANIC: "the guest's kernel panicked",
        ExitReason.FAULT: "the guest cannot go on",
        ExitReason.KILLED: "its process was killed from outside",
        ExitReason.CRASHED: "its engine failed",
        ExitReason.UNKNOWN: "it ended while nobody watched",
    }
    return f"{words[ended.reason]}{f': {ended.detail}' if ended.detail else ''}"
