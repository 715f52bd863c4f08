"""What every engine can do, and the values that pass between an engine and the daemon."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from nagaya.kernel import Kernel
from nagaya.paths import MachinePaths
from nagaya.spec import EngineName, MachineSpec


class GuestState(StrEnum):
    """What an engine knows about a machine's process."""

    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, safe against a reused number: `start_time` is field 22 of /proc/PID/stat, clock ticks."""

    pid: int
    start_time: int


class ExitReason(StrEnum):
    """Why a machine's process ended."""

    POWEROFF = "poweroff"  # the guest switched itself off
    REBOOT = "reboot"  # the guest asked for a restart; the supervisor starts it again
    PANIC = "panic"  # the guest's kernel panicked
    FAULT = "fault"  # the guest's CPU cannot go on: triple fault, an instruction that KVM cannot finish
    KILLED = "killed"  # by us
    CRASHED = "crashed"  # the engine's process died by a signal or with an error
    UNKNOWN = "unknown"  # it ended while nobody could see its status


@dataclass(frozen=True, slots=True)
class Exit:
    """How a machine's process ended. `detail` is for people: the panic's first line, the signal's name."""

    reason: ExitReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as an engine sees it: the specification with everything resolved."""

    id: str  # 12 hex digits
    spec: MachineSpec
    paths: MachinePaths
    uid: int  # its own, unprivileged
    gid: int
    kernel: Kernel
    devices: tuple[str, ...] = field(
        default=()
    )  # vhost-user devices in order: "disk0", ..., "console", "rng", "balloon0"


class Engine(Protocol):
    """One way to run a machine. All methods may raise `nagaya.errors.NagayaError`."""

    name: EngineName
    serial_console: bool  # the guest's console is its first serial port, not a virtio-console

    def check(self, spec: MachineSpec) -> None:
        """Raise `UnsupportedError` naming the field if this engine or host cannot do what `spec` says."""

    async def start(self, machine: Machine) -> ProcessId:
        """Launch the jailed process; its vhost-user sockets listen already. Returns when it exists."""

    async def request_shutdown(self, machine: Machine, process: ProcessId) -> None:
        """Press the power button. Returns at once; the guest decides."""

    async def kill(self, machine: Machine, process: ProcessId) -> None:
        """End all processes of the machine now. Idempotent; returns when they are gone."""

    async def pause(self, machine: Machine, process: ProcessId) -> None:
        """Stop the guest's CPUs. Idempotent."""

    async def resume(self, machine: Machine, process: ProcessId) -> None:
        """Let them run again. Idempotent."""

    async def adjust(self, machine: Machine) -> None:
        """Hold a running machine to the cpu knobs that its spec has now."""

    async def hold(self, machine: Machine, memory: int) -> None:
        """Let a machine that runs have `memory` bytes of guest memory, and what its process needs beside.

        Raises `ResourceError` if it has more than that already.
        """

    async def plug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """Give the guest the vhost-user disk or NIC `device`, whose socket listens.

        Raises `UnsupportedError`.
        """

    async def unplug(self, machine: Machine, process: ProcessId, device: str) -> None:
        """Take it away again, if the guest has it. Returns when that has let go, and raises
        `TimeoutExpiredError` if it does not.
        """

    async def state(self, machine: Machine, process: ProcessId) -> GuestState:
        """What the machine does now."""

    async def wait(self, machine: Machine, process: ProcessId) -> Exit:
        """Wait until the process has ended and say why. Works for an adopted process too (pidfd)."""

    async def cleanup(self, machine: Machine) -> None:
        """Remove all that `start` made (cgroup, leftovers of a start that was cut short). Idempotent."""
