"""The engine `uml`: a machine is a User-mode Linux process tree in a jail (docs/engines.md)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from nagaya.engines import mconsole
from nagaya.engines.command import MCONSOLE, host_memory, launch_plan, max_pids
from nagaya.engines.engine import Exit, GuestState, Machine, ProcessId
from nagaya.engines.exits import Status, classify, read_status, read_tail
from nagaya.engines.launch import ZygoteClient, ZygoteInfo, ensure_zygote
from nagaya.engines.procs import start_time_of
from nagaya.errors import (
    MachineFailedError,
    ResourceError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
)
from nagaya.paths import MachinePaths, Paths
from nagaya.resources.cgroups import Cgroup, Limits
from nagaya.resources.placement import CpuMeter, Placement, move_to_cpu
from nagaya.spec import CpuKnobs, DiskKnobs, EngineName, MachineSpec, NetworkKnobs
from nagaya.units import human_size

MEMORY_MIN = 24 * 2**20  # less, and the kernel has no room for its own tables
KILL_TIMEOUT_S = 10.0
STATUS_TIMEOUT_S = 1.0  # from the end of a process to the zygote's exit file


class UmlEngine:
    """Runs machines as User-mode Linux. One instance a daemon: it knows which machine is on which CPU."""

    name: EngineName = "uml"

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._zygote: ZygoteInfo | None = None
        self._placement = Placement()
        self._meter = CpuMeter()

    @property
    def zygote_pid(self) -> int | None:
        """The zygote that was last talked to."""
        return self._zygote.pid if self._zygote else None

    def check(self, spec: MachineSpec) -> None:
        """Raise `UnsupportedError` naming the field, its value and what is allowed."""
        knobs = "not built yet: leave it out"
        refused: tuple[tuple[bool, str, object, str], ...] = (
            (spec.cpus != 1, "cpus", spec.cpus, "User-mode Linux has one vCPU: 1"),
            (bool(spec.nics), "nics", len(spec.nics), "networks are not built yet: none"),
            (spec.memory.size < MEMORY_MIN, "memory.size", human_size(spec.memory.size), "at least 24 MiB"),
            (
                spec.memory.limit is not None and spec.memory.limit < spec.memory.size,
                "memory.limit",
                human_size(spec.memory.limit or 0),
                f"at least memory.size, {human_size(spec.memory.size)}: there is no balloon yet",
            ),
            (spec.cpu.reservation > CpuKnobs().reservation, "cpu.reservation", spec.cpu.reservation, knobs),
            (spec.disk != DiskKnobs(), "disk", spec.disk.model_dump(exclude_defaults=True), knobs),
            (
                spec.network != NetworkKnobs(),
                "network",
                spec.network.model_dump(exclude_defaults=True),
                knobs,
            ),
        )
        for wrong, field, value, allowed in refused:
            if wrong:
                raise UnsupportedError(
                    f"{spec.name}: {field}: {value} is not possible with engine uml, {allowed}", field=field
                )

    async def prepare(self) -> ZygoteInfo:
        """Make sure that the zygote runs; `start` does it too. Worth calling before the first start."""
        self._zygote = await ensure_zygote(self._paths)
        return self._zygote

    async def start(self, machine: Machine) -> ProcessId:
        """Launch the jailed process; its vhost-user sockets listen already. Returns when it has executed."""
        zygote = await self.prepare()
        _killed_mark(machine.paths).unlink(missing_ok=True)
        cpu = self._placement.choose(machine.id)
        group = Cgroup.below(zygote.base, machine.id)
        pinned = None if "cpuset" in group.groups else cpu
        try:
            plan = launch_plan(machine, group, pinned)
            await asyncio.to_thread(_make_group, machine, group, cpu)
            return await ZygoteClient(self._paths).launch(plan)
        except OSError as error:
            self._placement.forget(machine.id)
            raise ResourceError(f"{machine.spec.name}: its control group cannot be made: {error}") from error
        except BaseException:
            self._placement.forget(machine.id)
            raise

    async def request_shutdown(self, machine: Machine, process: ProcessId) -> None:
        """Press ctrl-alt-del. Returns at once; the guest decides.

        Raises `UnavailableError` if the guest's kernel does not listen (yet). A guest without an init that
        catches it restarts, which ends the process with `ExitReason.REBOOT`.
        """
        if not _alive(process):
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
        if not _alive(process):
            return
        with contextlib.suppress(FileNotFoundError):
            _killed_mark(machine.paths).touch()
        await asyncio.to_thread(_kill_group, machine, process)
        if not await _ended(process, KILL_TIMEOUT_S):
            raise TimeoutExpiredError(
                f"{machine.spec.name}: process {process.pid} did not end {KILL_TIMEOUT_S:g} s after SIGKILL",
                hint="it waits for the host in the kernel: look at its /proc/PID/stack",
            )

    async def pause(self, machine: Machine, process: ProcessId) -> None:
        """Freeze the machine's control group: stops all processes at once, whatever the guest does."""
        await self._freezer(machine, process, "paused", Cgroup.freeze)

    async def resume(self, machine: Machine, process: ProcessId) -> None:
        """Thaw it."""
        await self._freezer(machine, process, "resumed", Cgroup.thaw)

    async def state(self, machine: Machine, process: ProcessId) -> GuestState:
        """What the machine does now."""
        if not _alive(process):
            return GuestState.GONE
        group = Cgroup.load(_group_file(machine.paths))
        return GuestState.PAUSED if group is not None and group.frozen() else GuestState.RUNNING

    async def wait(self, machine: Machine, process: ProcessId) -> Exit:
        """Wait until the process has ended and say why. Works for an adopted process too."""
        self._adopt(machine, process)
        await _ended(process, None)
        status = await _status(machine.paths, process)
        group = Cgroup.load(_group_file(machine.paths))
        return classify(
            status,
            read_tail(machine.paths.engine_log),
            killed=_killed_mark(machine.paths).exists(),
            oom_kills=group.oom_kills() if group is not None else 0,
        )

    async def cleanup(self, machine: Machine) -> None:
        """End what is left of the machine, known or not, and remove its control groups. Idempotent."""
        self._placement.forget(machine.id)
        if self._zygote is not None:
            with contextlib.suppress(UnavailableError):
                left = (await ZygoteClient(self._paths).list()).get(machine.id)
                if left is not None:
                    await self.kill(machine, left)
        await asyncio.to_thread(_remove_group, machine)
        _killed_mark(machine.paths).unlink(missing_ok=True)

    async def balance(self, processes: Mapping[str, int]) -> str:
        """Move one machine to another CPU if that evens out the load. `processes`: machine id to pid.

        To be called every few seconds. Returns what was done in words, "" for nothing.
        """
        return await asyncio.to_thread(self._balance, processes)

    def _balance(self, processes: Mapping[str, int]) -> str:
        groups = {one: Cgroup.load(_group_file(self._paths.machine(one))) for one in processes}
        known = {one: group for one, group in groups.items() if group is not None}
        usage = {one: group.usage_us() for one, group in known.items()}
        move = self._placement.decide(
            {one: used for one, used in usage.items() if used is not None}, self._meter.loads()
        )
        if move is None:
            return ""
        move_to_cpu(known[move.machine], move.cpu)
        return f"moved machine {move.machine} to CPU {move.cpu}"

    def _adopt(self, machine: Machine, process: ProcessId) -> None:
        if self._placement.cpu_of(machine.id) is None:
            with contextlib.suppress(OSError):
                self._placement.place(machine.id, min(os.sched_getaffinity(process.pid)))

    async def _freezer(
        self, machine: Machine, process: ProcessId, done: str, act: Callable[[Cgroup], bool]
    ) -> None:
        if not _alive(process):
            raise MachineFailedError(f"{machine.spec.name} cannot be {done}: its process has ended")
        group = Cgroup.load(_group_file(machine.paths))
        if group is None or not await asyncio.to_thread(act, group):
            raise UnsupportedError(
                f"{machine.spec.name} cannot be {done}: this host offers no freezer",
                hint="mount cgroup2, or cgroup v1 with the freezer controller",
            )


def _group_file(paths: MachinePaths) -> Path:
    """Where the machine's control groups are; written before they are made."""
    return paths.run / "cgroups.json"


def _killed_mark(paths: MachinePaths) -> Path:
    """Exists once we were asked to kill: tells our SIGKILL from others'."""
    return paths.run / "killed"


def _make_group(machine: Machine, group: Cgroup, cpu: int) -> None:
    group.save(_group_file(machine.paths))
    group.create(
        Limits(
            memory=host_memory(machine),
            cpu_weight=machine.spec.cpu.weight,
            cpu_limit=machine.spec.cpu.limit,
            pids=max_pids(machine),
            cpu=cpu,
        )
    )


def _kill_group(machine: Machine, process: ProcessId) -> None:
    """Process 1 of its pid namespace takes all others with it; the group also has what never got that far."""
    with _pidfd(process) as fd:
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


def _alive(process: ProcessId) -> bool:
    with _pidfd(process) as fd:
        return fd is not None and not select.select([fd], [], [], 0)[0]


@contextlib.contextmanager
def _pidfd(process: ProcessId) -> Iterator[int | None]:
    """A pidfd of that very process, or None if it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd if _start_time(process.pid) == process.start_time else None
    finally:
        os.close(fd)


def _start_time(pid: int) -> int | None:
    try:
        return start_time_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None


async def _ended(process: ProcessId, seconds: float | None) -> bool:
    """Wait until the process has ended; False at the timeout."""
    loop = asyncio.get_running_loop()
    with _pidfd(process) as fd:
        if fd is None:
            return True
        ended = asyncio.Event()
        loop.add_reader(fd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(fd)
    return True


async def _status(paths: MachinePaths, process: ProcessId) -> Status | None:
    """What the zygote wrote; it reaps within milliseconds, if it lives."""
    deadline = asyncio.get_running_loop().time() + STATUS_TIMEOUT_S
    while True:
        status = read_status(paths.exit_file, process)
        if status is not None or asyncio.get_running_loop().time() > deadline:
            return status
        await asyncio.sleep(0.002)
