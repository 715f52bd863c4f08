"""One vCPU: its registers, and the loop that runs it and answers its exits.

The loop leaves the guest to park for one reason only: KVM_RUN fails with EINTR while `immediate_exit` is set.
An exit is always answered and KVM_RUN called again before that, because the kernel finishes an instruction
that waits for a value (IN, a load) at the next KVM_RUN. So whoever sees a parked vCPU sees it between two
instructions.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Protocol, TypeVar

from nagaya.abi import kvm
from nagaya.closing import Closing
from nagaya.errors import ConflictError, MachineFailedError, ResourceError, UnsupportedError
from nagaya.kvm import completer, exits
from nagaya.kvm.system import array, cpuid_entries, ioctl
from nagaya.kvm.vm import Vm

_Structure = TypeVar("_Structure", bound=ctypes.Structure)

_REFUSED_MSRS = 64  # distinct numbers to remember; a guest may try 2^32


class Space(Protocol):
    """What answers a vCPU's accesses: a `nagaya.hw.bus.Bus`."""

    def read(self, address: int, size: int) -> int:
        """The value of `size` bytes at `address`."""

    def write(self, address: int, size: int, value: int) -> None:
        """Store `value` at `address`."""


class Lock(Protocol):
    """The machine's lock, a `threading.Lock` or `RLock`."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Vcpu(Closing):
    """A vCPU of `vm`. I/O goes to `ports` and `memory`, with `lock` held. A context manager.

    Its state is for the thread that runs it, and for others while nobody does; else `ConflictError`.
    """

    def __init__(self, vm: Vm, index: int, *, ports: Space, memory: Space, lock: Lock) -> None:
        """`index` is the APIC id too; 0 boots, the rest wait for INIT and SIPI."""
        self.index = index
        self.refused_msrs: Counter[int] = Counter()  # by number: accesses that ended in #GP
        self.completed: Counter[str] = Counter()  # by name: instructions that the completer finished
        self._runner: int | None = None  # the thread that runs it
        self._ports = ports
        self._memory = memory
        self._lock = lock
        self.fd = vm.create_vcpu(index)
        try:
            self._page = mmap.mmap(self.fd, vm.system.run_size(), mmap.MAP_SHARED)
        except OSError as error:
            os.close(self.fd)
            raise ResourceError(f"vCPU {index}: its page cannot be mapped: {error.strerror}") from error
        self._run = memoryview(self._page)

    def close(self) -> None:
        """Free the vCPU; it must not be running."""
        if self.fd >= 0:
            self._run.release()
            self._page.close()
            os.close(self.fd)
            self.fd = -1

    # Running

    def ask_to_leave(self, leave: bool) -> None:
        """Let the next KVM_RUN return at once, or run again. Who is in the guest needs a signal besides."""
        self._run[kvm.RUN_IMMEDIATE_EXIT] = leave

    def run(self) -> None:
        """Run the guest until it is asked to leave. Raises `MachineFailedError` when it cannot go on."""
        self._runner = threading.get_ident()
        try:
            self._loop()
        finally:
            self._runner = None

    def _loop(self) -> None:
        fd, run = self.fd, self._run
        while True:
            try:
                fcntl.ioctl(fd, kvm.KVM_RUN, 0)
            except InterruptedError:
                if run[kvm.RUN_IMMEDIATE_EXIT]:
                    return
                continue
            except BlockingIOError:  # a vCPU that waited for SIPI was woken (kvm_arch_vcpu_ioctl_run)
                continue
            except OSError as error:
                raise self._failure(f"KVM_RUN: {error.strerror}") from error
            try:
                self._answer(exits.parse(run))
            except MachineFailedError:
                raise
            except Exception as error:
                raise self._failure(f"internal error: {type(error).__name__}: {error}") from error

    def _answer(self, exit_: exits.Exit) -> None:
        match exit_:
            case exits.MemoryWrite(address, size, value):
                with self._lock:
                    self._memory.write(address, size, value)
            case exits.PortWrite(port, size, values):
                with self._lock:
                    for value in values:
                        self._ports.write(port, size, value)
            case exits.MemoryRead(address, size):
                with self._lock:
                    value = self._memory.read(address, size)
                at = kvm.RUN_MMIO_DATA
                self._run[at : at + 8] = value.to_bytes(8, "little")
            case exits.PortRead(port, size, count, offset):
                with self._lock:
                    read = b"".join(
                        self._ports.read(port, size).to_bytes(size, "little") for _ in range(count)
                    )
                self._run[offset : offset + len(read)] = read
            case exits.MsrAccess(index):
                self._run[kvm.RUN_MSR_ERROR] = 1  # #GP, as on a CPU without it
                if index in self.refused_msrs or len(self.refused_msrs) < _REFUSED_MSRS:
                    self.refused_msrs[index] += 1
            case exits.EmulationFailure(instruction):
                name = completer.complete(self, instruction)
                if name is None:
                    raise self._failure(f"KVM cannot emulate {instruction.hex(' ') or 'an instruction'}")
                self.completed[name] += 1
            case _:
                raise self._failure(_cause(exit_))

    def _failure(self, cause: str) -> MachineFailedError:
        """With the registers, as far as they can be had."""
        try:
            regs, sregs = self.get_regs(), self.get_sregs()
            where = (
                f" at rip {regs.rip:#x} (cs {sregs.cs.selector:#x}, cr0 {sregs.cr0:#x}, efer {sregs.efer:#x})"
            )
        except OSError:
            where = ""
        return MachineFailedError(f"vCPU {self.index}: {cause}{where}", vcpu=self.index, cause=cause)

    # State

    def get_regs(self) -> kvm.Regs:
        """The general registers, rip and rflags."""
        return self.fetch(kvm.KVM_GET_REGS, kvm.Regs())

    def set_regs(self, regs: kvm.Regs) -> None:
        """Set the general registers, rip and rflags."""
        self._ioctl(kvm.KVM_SET_REGS, regs)

    def get_sregs(self) -> kvm.Sregs:
        """Segments, descriptor tables, control registers, EFER, APIC base."""
        return self.fetch(kvm.KVM_GET_SREGS, kvm.Sregs())

    def set_sregs(self, sregs: kvm.Sregs) -> None:
        """Set segments, descriptor tables, control registers, EFER, APIC base."""
        self._ioctl(kvm.KVM_SET_SREGS, sregs)

    def set_cpuid(self, entries: Iterable[kvm.CpuidEntry]) -> None:
        """What CPUID says. Before the first run. Raises `UnsupportedError` if the host refuses."""
        listed = list(entries)
        try:
            self._ioctl(kvm.KVM_SET_CPUID2, array(kvm.Cpuid(nent=len(listed)), listed))
        except OSError as error:
            raise UnsupportedError(
                f"vCPU {self.index}: KVM refuses the CPU model: {error.strerror}"
            ) from error

    def get_cpuid(self) -> tuple[kvm.CpuidEntry, ...]:
        """What CPUID says, with what the kernel keeps up to date (OSXSAVE, ...)."""
        self._refuse_while_running()
        return cpuid_entries(self.fd, kvm.KVM_GET_CPUID2)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The values of MSRs, up to the first that KVM does not give."""
        asked = [kvm.MsrEntry(index=index) for index in indices]
        buffer = array(kvm.Msrs(nmsrs=len(asked)), asked)
        count = self._ioctl(kvm.KVM_GET_MSRS, buffer)
        found = (kvm.MsrEntry * count).from_buffer_copy(buffer, ctypes.sizeof(kvm.Msrs))
        return {entry.index: entry.data for entry in found}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs. Raises `UnsupportedError` with the first that KVM refuses."""
        entries = [kvm.MsrEntry(index=index, data=value) for index, value in values.items()]
        count = self._ioctl(kvm.KVM_SET_MSRS, array(kvm.Msrs(nmsrs=len(entries)), entries))
        if count < len(entries):
            refused = entries[count]
            raise UnsupportedError(
                f"vCPU {self.index}: KVM refuses MSR {refused.index:#x} = {refused.data:#x}"
            )

    def get_mp_state(self) -> int:
        """One of KVM_MP_STATE_*."""
        return int(self.fetch(kvm.KVM_GET_MP_STATE, kvm.MpState()).mp_state)

    def set_mp_state(self, state: int) -> None:
        """Set one of KVM_MP_STATE_*."""
        self._ioctl(kvm.KVM_SET_MP_STATE, kvm.MpState(mp_state=state))

    def get_events(self) -> kvm.VcpuEvents:
        """Exceptions and interrupts that are on their way into the guest."""
        return self.fetch(kvm.KVM_GET_VCPU_EVENTS, kvm.VcpuEvents())

    def set_events(self, events: kvm.VcpuEvents) -> None:
        """Inject exceptions and interrupts."""
        self._ioctl(kvm.KVM_SET_VCPU_EVENTS, events)

    def fetch(self, request: int, into: _Structure) -> _Structure:
        """Any other part of the state: a KVM_GET_* of the vCPU, into its structure."""
        self._ioctl(request, into)
        return into

    def store(self, request: int, structure: ctypes.Structure) -> None:
        """Any other part of the state: a KVM_SET_* of the vCPU."""
        self._ioctl(request, structure)

    def tsc_khz(self) -> int:
        """The frequency of the guest's time-stamp counter; 0 if the kernel does not say."""
        try:
            return self._ioctl(kvm.KVM_GET_TSC_KHZ)
        except OSError as error:
            if error.errno != errno.EIO:  # "the host's is not stable"
                raise
            return 0

    def account_pause(self) -> None:
        """Tell the guest through kvmclock that it was stopped, so that its watchdogs do not bark."""
        try:
            self._ioctl(kvm.KVM_KVMCLOCK_CTRL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which says that the guest does not use kvmclock
                raise

    def _ioctl(self, request: int, argument: ctypes._CData | int = 0) -> int:
        self._refuse_while_running()
        return ioctl(self.fd, request, argument)

    def _refuse_while_running(self) -> None:
        """The kernel would let another thread wait, deaf to signals, until the guest leaves by itself."""
        if self._runner not in (None, threading.get_ident()):
            raise ConflictError(f"vCPU {self.index} is running", hint="pause the machine first")


_SUBERRORS = {
    kvm.KVM_INTERNAL_ERROR_SIMUL_EX: "an exception met another while it was delivered",
    kvm.KVM_INTERNAL_ERROR_DELIVERY_EV: "an event could not be delivered",
    kvm.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: "the CPU left the guest for a reason unknown to KVM",
}
_SYSTEM_EVENTS = {
    kvm.KVM_SYSTEM_EVENT_SHUTDOWN: "shut down",
    kvm.KVM_SYSTEM_EVENT_RESET: "reset",
    kvm.KVM_SYSTEM_EVENT_CRASH: "crashed",
}


def _cause(exit_: exits.Exit) -> str:  # noqa: PLR0911 - a table of cases
    match exit_:
        case exits.Shutdown():
            return "triple fault"
        case exits.InternalError(suberror, words):
            known = _SUBERRORS.get(suberror, f"internal error {suberror} of KVM")
            return f"{known} ({' '.join(f'{word:#x}' for word in words)})"
        case exits.FailEntry(reason, cpu):
            return f"the CPU refuses the guest's state (reason {reason:#x}, CPU {cpu})"
        case exits.SystemEvent(kind):
            return f"the guest {_SYSTEM_EVENTS.get(kind, f'caused system event {kind}')}"
        case exits.Halt():
            return "HLT without an interrupt controller"
        case exits.Unknown(reason):
            return f"KVM_RUN came back for reason {reason}"
        case _:
            return f"unexpected exit {exit_}"
