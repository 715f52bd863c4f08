"""What engines share whose machines are jailed processes of the zygote: launch, kill, wait, clean up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nagaya import oom
from nagaya.engines.cpus import Cpus
from nagaya.engines.engine import Machine, ProcessId
from nagaya.engines.exits import Status, read_status, read_tail
from nagaya.engines.launch import NoZygoteError, ZygoteClient, ZygoteInfo, ensure_zygote
from nagaya.engines.pidfd import alive, ended, pidfd
from nagaya.engines.plan import LaunchPlan
from nagaya.errors import ResourceError, TimeoutExpiredError, UnavailableError, UnsupportedError
from nagaya.paths import MachinePaths, Paths
from nagaya.resources.cgroups import Cgroup, Limits
from nagaya.resources.placement import move_to_cpus
from nagaya.units import human_size

KILL_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 1.0  # from the end of a process to the zygote's exit file


@dataclass(frozen=True, slots=True)
class Ended:
    """What is known of a process that has ended."""

    status: Status | None  # None: nobody could see it
    log: str  # the end of what it printed
    killed: bool  # we were asked to
    oom_kills: int  # processes that the host's OOM killer took


class Jails:
    """The machines' processes of one Nagaya, by way of its zygote. One instance serves all engines."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.cpus = Cpus()
        self._zygote: ZygoteInfo | None = None

    @property
    def zygote_pid(self) -> int | None:
        """The zygote that was last talked to."""
        return self._zygote.pid if self._zygote else None

    async def prepare(self) -> ZygoteInfo:
        """Make sure that the zygote runs; `launch` does it too. Worth calling before the first start."""
        self._zygote = await ensure_zygote(self._paths)
        return self._zygote

    async def launch(
        self, machine: Machine, limits: Limits, plan: Callable[[Cgroup], LaunchPlan]
    ) -> ProcessId:
        """Start what `plan` makes of the machine's control group, which is held to `limits`."""
        try:
            return await self._launch(machine, limits, plan, self._zygote or await self.prepare())
        except NoZygoteError:  # it ended since we talked to it last
            return await self._launch(machine, limits, plan, await self.prepare())

    async def _launch(
        self, machine: Machine, limits: Limits, plan: Callable[[Cgroup], LaunchPlan], zygote: ZygoteInfo
    ) -> ProcessId:
        _killed_mark(machine.paths).unlink(missing_ok=True)
        group = Cgroup.below(zygote.base, machine.id)
        made = plan(group)
        try:
            await asyncio.to_thread(_make_group, machine, group, limits)
            self.cpus.hold(machine, group, limits.cpus or self.cpus.host)
        except OSError as error:
            raise ResourceError(f"{machine.spec.name}: its control group cannot be made: {error}") from error
        process = await ZygoteClient(self._paths).launch(made)
        if limits.cpus is not None and "cpuset" not in group.groups:
            await asyncio.to_thread(move_to_cpus, group, limits.cpus)
        return process

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        """End all processes of the machine now, paused or not. Returns when they are gone. Idempotent."""
        if not alive(process):
            return
        with contextlib.suppress(FileNotFoundError):
            _killed_mark(machine.paths).touch()
        await asyncio.to_thread(_kill_group, machine, process)
        if not await ended(process, KILL_TIMEOUT_S):
            raise TimeoutExpiredError(
                f"{machine.spec.name}: process {process.pid} did not end {KILL_TIMEOUT_S:g} s after SIGKILL",
                hint="it waits for the host in the kernel: look at its /proc/PID/stack",
            )

    async def adjust(self, machine: Machine, cpus: frozenset[int]) -> None:
        """Set weight, limit, reservation and CPUs of a machine that runs. Raises `UnsupportedError`."""
        group = self.group(machine.id)
        if group is None or "cpu" not in group.groups:
            raise UnsupportedError(
                f"{machine.spec.name}: cpu: this host has no cpu controller to hold it to a share",
                hint="nagaya doctor says which control groups there are",
                field="cpu",
            )
        try:
            await asyncio.to_thread(group.set_cpu_limit, machine.spec.cpu.limit)
            self.cpus.hold(machine, group, cpus)
            await asyncio.to_thread(move_to_cpus, group, cpus)
        except OSError as error:
            raise ResourceError(f"{machine.spec.name}: its control group cannot be set: {error}") from error

    async def hold(self, machine: Machine, memory: int) -> None:
        """Limit the host memory of a machine that runs. Raises `ResourceError` if it has more already."""
        group = self.group(machine.id)
        try:
            if group is not None:
                await asyncio.to_thread(group.set_memory, memory)
        except OSError as error:
            raise ResourceError(
                f"{machine.spec.name}: its memory cannot be limited to {human_size(memory)}: {error.strerror}"
            ) from error

    def adopt(self, machine: Machine, process: ProcessId) -> frozenset[int]:
        """Know a machine that an earlier daemon may have started; where it runs."""
        cpus = self.cpus.found(machine, process.pid)
        group = self.group(machine.id)
        if group is not None and cpus:
            with contextlib.suppress(OSError):  # it is ending just now
                self.cpus.hold(machine, group, cpus)
        return cpus

    async def wait(self, machine: Machine, process: ProcessId) -> Ended:
        """Wait until the process has ended. Works for an adopted process too."""
        await ended(process, None)
        status = await _status(machine.paths, process)
        group = self.group(machine.id)
        return Ended(
            status,
            read_tail(machine.paths.engine_log),
            _killed_mark(machine.paths).exists(),
            group.oom_kills() if group is not None else 0,
        )

    async def cleanup(self, machine: Machine) -> None:
        """End what is left of the machine, known or not, and remove its control groups. Idempotent."""
        if self._zygote is not None:
            with contextlib.suppress(UnavailableError):
                left = (await ZygoteClient(self._paths).list()).get(machine.id)
                if left is not None:
                    await self.kill(machine, left)
        await asyncio.to_thread(_remove_group, machine)
        self.cpus.release(machine.id)
        _killed_mark(machine.paths).unlink(missing_ok=True)

    def rank(self, machine_id: str, score: int) -> None:
        """Give all processes of a machine a score for the out-of-memory killer (`nagaya.oom`)."""
        group = self.group(machine_id)
        if group is not None:
            oom.rank(group.pids, score)

    def group(self, machine_id: str) -> Cgroup | None:
        """The control groups of a machine that was launched, by this daemon or an earlier one."""
        return Cgroup.load(_group_file(self._paths.machine(machine_id)))


def _group_file(paths: MachinePaths) -> Path:
    """Where the machine's control groups are; written before they are made."""
    return paths.run / "cgroups.json"


def _killed_mark(paths: MachinePaths) -> Path:
    """Exists once we were asked to kill: tells our SIGKILL from others'."""
    return paths.run / "killed"


def _make_group(machine: Machine, group: Cgroup, limits: Limits) -> None:
    group.save(_group_file(machine.paths))
    group.create(limits)


def _kill_group(machine: Machine, process: ProcessId) -> None:
    """Process 1 of its pid namespace takes all others with it; the group also has what never got that far."""
    with pidfd(process) as fd:
        if fd is not None:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    group = Cgroup.load(_group_file(machine.paths))
    if group is not None:
        group.kill()


def _remove_group(machine: Machine) -> None:
    group = Cgroup.load(_group_file(machine.paths))
    if group is None:
        return
    group.kill()
    try:
        group.remove()
    except OSError as error:
        raise ResourceError(
            f"{machine.spec.name}: its control group cannot be removed: {error}",
            hint=f"processes that are left: {group.pids()}",
        ) from error
    _group_file(machine.paths).unlink(missing_ok=True)


async def _status(paths: MachinePaths, process: ProcessId) -> Status | None:
    """What the zygote wrote; it reaps within milliseconds, if it lives."""
    deadline = asyncio.get_running_loop().time() + STATUS_TIMEOUT_S
    while True:
        status = read_status(paths.exit_file, process)
        if status is not None or asyncio.get_running_loop().time() > deadline:
            return status
        await asyncio.sleep(0.002)
