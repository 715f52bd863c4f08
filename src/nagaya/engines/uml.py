"""The engine `uml`: a machine is a User-mode Linux process tree in a jail (docs/engines.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from nagaya.engines import mconsole
from nagaya.engines.check import refuse
from nagaya.engines.command import MCONSOLE, host_memory, launch_plan, max_pids
from nagaya.engines.engine import Exit, GuestState, Machine, ProcessId
from nagaya.engines.exits import classify
from nagaya.engines.jailed import Jails
from nagaya.engines.launch import ZygoteInfo
from nagaya.engines.pidfd import alive
from nagaya.engines.plan import LaunchPlan
from nagaya.errors import MachineFailedError, UnavailableError, UnsupportedError
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup, Limits
from nagaya.resources.placement import CpuMeter
from nagaya.spec import EngineName, MachineSpec
from nagaya.units import human_size

MEMORY_MIN = 24 * 2**20  # less, and the kernel has no room for its own tables


class UmlEngine:
    """Runs machines as User-mode Linux. One instance a daemon: it knows which machine is on which CPU."""

    name: EngineName = "uml"
    serial_console = False

    def __init__(self, paths: Paths, jails: Jails | None = None) -> None:
        """`jails` is what engines of one daemon share."""
        self._jails = jails or Jails(paths)
        self.cpus = self._jails.cpus
        self._meter = CpuMeter()

    def check(self, spec: MachineSpec) -> None:
        """Raise `UnsupportedError` naming the field, its value and what is allowed."""
        self.cpus.check(spec)
        size = spec.memory.size
        refuse(
            spec,
            self.name,
            (
                (spec.cpus != 1, "cpus", spec.cpus, "User-mode Linux has one vCPU: 1"),
                (
                    spec.cpu_model != "host",
                    "cpu_model",
                    spec.cpu_model,
                    "User-mode Linux shows the host's: host",
                ),
                (size < MEMORY_MIN, "memory.size", human_size(size), "at least 24 MiB"),
                (
                    spec.memory.max is not None,
                    "memory.max",
                    human_size(spec.memory.max or 0),
                    "User-mode Linux plugs no memory: give it all as memory.size; memory.limit takes back",
                ),
            ),
        )

    async def prepare(self) -> ZygoteInfo:
        """Make sure that the zygote runs; `start` does it too. Worth calling before the first start."""
        return await self._jails.prepare()

    async def start(self, machine: Machine) -> ProcessId:
        """Launch the jailed process; its vhost-user sockets listen already. Returns when it has executed."""
        cpus = self.cpus.one(machine)
        limits = Limits(
            memory=host_memory(machine),
            cpu_weight=machine.spec.cpu.weight,
            cpu_limit=machine.spec.cpu.limit,
            pids=max_pids(machine),
            cpus=cpus,
        )

        def plan(group: Cgroup) -> LaunchPlan:
            return launch_plan(machine, group, None if "cpuset" in group.groups else min(cpus))

        try:
            return await self._jails.launch(machine, limits, plan)
        except BaseException:
            self.cpus.release(machine.id)
            raise

    async def request_shutdown(self, machine: Machine, process: ProcessId) -> None:
        """Press ctrl-alt-del. Returns at once; the guest decides.

        Raises `UnavailableError` if the guest's kernel does not listen (yet). A guest without an init that
        catches it restarts, which ends the process with `ExitReason.REBOOT`.
        """
        if not alive(process):
            return
        try:
            mconsole.send(process.pid, MCONSOLE, machine.uid if os.geteuid() == 0 else os.geteuid(), "cad")
        except OSError as error:
            raise UnavailableError(
                f"{machine.spec.name}: its kernel takes no commands: {error.strerror or error}",
                hint="it may be at the very start of its boot, or stuck: nagaya kill",
                machine=machine.spec.name,
            ) from error

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        """End all processes of the machine now, paused or not. Returns when they are gone. Idempotent."""
        await self._jails.kill(machine, process)

    async def pause(self, machine: Machine, process: ProcessId) -> None:
        """Freeze the machine's control group: stops all processes at once, whatever the guest does."""
        await self._freezer(machine, process, "paused", Cgroup.freeze)

    async def resume(self, machine: Machine, process: ProcessId) -> None:
        """Thaw it."""
        await self._freezer(machine, process, "resumed", Cgroup.thaw)

    async def plug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """User-mode Linux finds its devices on its command line, and its console (mconsole) adds none."""
        raise _no_hotplug(machine)

    async def unplug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """The same."""
        raise _no_hotplug(machine)

    async def hold(self, machine: Machine, memory: int) -> None:
        """Let it have so much guest memory."""
        await self._jails.hold(machine, host_memory(machine) - machine.spec.memory.size + memory)

    async def adjust(self, machine: Machine) -> None:
        """Hold a running machine to the cpu knobs that its spec has now."""
        await self._jails.adjust(machine, self.cpus.one(machine))

    async def state(self, machine: Machine, process: ProcessId) -> GuestState:
        """What the machine does now."""
        if not alive(process):
            return GuestState.GONE
        group = self._jails.group(machine.id)
        return GuestState.PAUSED if group is not None and group.frozen() else GuestState.RUNNING

    async def wait(self, machine: Machine, process: ProcessId) -> Exit:
        """Wait until the process has ended and say why. Works for an adopted process too."""
        self._adopt(machine, process)
        ended = await self._jails.wait(machine, process)
        return classify(ended.status, ended.log, killed=ended.killed, oom_kills=ended.oom_kills)

    async def cleanup(self, machine: Machine) -> None:
        """End what is left of the machine, known or not, and remove its control groups. Idempotent."""
        await self._jails.cleanup(machine)

    async def balance(self, processes: Mapping[str, int]) -> str:
        """Move one machine to another CPU if that evens out the load. `processes`: machine id to pid.

        To be called every few seconds. Returns what was done in words, "" for nothing.
        """
        usage = await asyncio.to_thread(self._usage, processes)
        move = self.cpus.placement.decide(
            {one: used for one, used in usage.items() if used is not None}, self._meter.loads()
        )
        if move is None:
            return ""
        await self.cpus.move(move.machine, [move.cpu])
        return f"moved machine {move.machine} to CPU {move.cpu}"

    def _usage(self, processes: Mapping[str, int]) -> Mapping[str, int | None]:
        groups = {one: self._jails.group(one) for one in processes}
        return {one: group.usage_us() for one, group in groups.items() if group is not None}

    def _adopt(self, machine: Machine, process: ProcessId) -> None:
        cpus = self._jails.adopt(machine, process)
        if cpus and self.cpus.placement.cpu_of(machine.id) is None:
            self.cpus.placement.place(machine.id, min(cpus), self.cpus.need(machine.spec))

    async def _freezer(
        self, machine: Machine, process: ProcessId, done: str, act: Callable[[Cgroup], bool]
    ) -> None:
        if not alive(process):
            raise MachineFailedError(f"{machine.spec.name} cannot be {done}: its process has ended")
        group = self._jails.group(machine.id)
        if group is None or not await asyncio.to_thread(act, group):
            raise UnsupportedError(
                f"{machine.spec.name} cannot be {done}: this host offers no freezer",
                hint="mount cgroup2, or cgroup v1 with the freezer controller",
            )


def _no_hotplug(machine: Machine) -> UnsupportedError:
    return UnsupportedError(
        f"{machine.spec.name} runs, and nothing is plugged into a machine of the engine uml while it does",
        hint=f"nagaya stop {machine.spec.name} first; the engine kvm can",
        machine=machine.spec.name,
    )
