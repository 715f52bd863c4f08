"""Why a vCPU left the guest: `parse` reads the page that it shares with the kernel, once, into a dataclass.

Documentation/virt/kvm/api.rst, section 5, "The kvm_run structure".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from nagaya.abi import kvm

MAX_INSTRUCTION = 15  # bytes (SDM 2A, 2.3.11)


@dataclass(frozen=True, slots=True)
class PortWrite:
    """OUT or OUTS: `values` of `size` bytes each to one port, in this order."""

    port: int
    size: int
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PortRead:
    """IN or INS: the kernel wants `count` values of `size` bytes at `offset` in the shared page."""

    port: int
    size: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """A store to an address that is no RAM."""

    address: int
    size: int
    value: int


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """A load from an address that is no RAM; the kernel wants the value at `kvm.RUN_MMIO_DATA`."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class MsrAccess:
    """RDMSR or WRMSR of a register that the filter refuses or that KVM does not know."""

    index: int
    write: bool


@dataclass(frozen=True, slots=True)
class Halt:
    """HLT, where the kernel has no irqchip to wait in."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """A triple fault."""


@dataclass(frozen=True, slots=True)
class SystemEvent:
    """The kernel ended, reset or lost the guest; `kind` is a KVM_SYSTEM_EVENT_*."""

    kind: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmulationFailure:
    """KVM's emulator met an instruction that it does not know. `instruction` may be empty."""

    instruction: bytes


@dataclass(frozen=True, slots=True)
class InternalError:
    """KVM gave up; `suberror` is a KVM_INTERNAL_ERROR_*."""

    suberror: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FailEntry:
    """The CPU refused the guest's state; `reason` is the hardware's."""

    reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class IoapicEoi:
    """End of interrupt for an I/O APIC in user space."""

    vector: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Any other KVM_EXIT_*."""

    reason: int


Exit = (
    PortWrite
    | PortRead
    | MemoryWrite
    | MemoryRead
    | MsrAccess
    | Halt
    | Shutdown
    | SystemEvent
    | EmulationFailure
    | InternalError
    | FailEntry
    | IoapicEoi
    | Unknown
)

_reason = struct.Struct("=I")
_io = struct.Struct(kvm.RUN_IO)
_mmio = struct.Struct(kvm.RUN_MMIO)
_fail_entry = struct.Struct(kvm.RUN_FAIL_ENTRY)
_internal = struct.Struct(kvm.RUN_INTERNAL)
_system_event = struct.Struct(kvm.RUN_SYSTEM_EVENT)
_msr = struct.Struct(kvm.RUN_MSR)


def parse(run: memoryview) -> Exit:
    """The exit that `run`, the vCPU's shared page, holds after KVM_RUN returned 0."""
    (reason,) = _reason.unpack_from(run, kvm.RUN_EXIT_REASON)
    if reason == kvm.KVM_EXIT_IO:
        direction, size, port, count, offset = _io.unpack_from(run, kvm.RUN_UNION)
        if direction == kvm.KVM_EXIT_IO_IN:
            return PortRead(port, size, count, offset)
        if count == 1:
            return PortWrite(port, size, (int.from_bytes(run[offset : offset + size], "little"),))
        starts = range(offset, offset + count * size, size)
        return PortWrite(port, size, tuple(int.from_bytes(run[at : at + size], "little") for at in starts))
    if reason == kvm.KVM_EXIT_MMIO:
        address, value, size, is_write = _mmio.unpack_from(run, kvm.RUN_UNION)
        if is_write:
            return MemoryWrite(address, size, value & (1 << 8 * size) - 1)
        return MemoryRead(address, size)
    return _rare(reason, run)


def _rare(reason: int, run: memoryview) -> Exit:  # noqa: PLR0911 - a table of cases
    match reason:
        case kvm.KVM_EXIT_X86_RDMSR | kvm.KVM_EXIT_X86_WRMSR:
            _, _, index, _ = _msr.unpack_from(run, kvm.RUN_UNION)
            return MsrAccess(index, reason == kvm.KVM_EXIT_X86_WRMSR)
        case kvm.KVM_EXIT_HLT:
            return Halt()
        case kvm.KVM_EXIT_SHUTDOWN:
            return Shutdown()
        case kvm.KVM_EXIT_SYSTEM_EVENT:
            kind, count, *words = _system_event.unpack_from(run, kvm.RUN_UNION)
            return SystemEvent(kind, tuple(words[:count]))
        case kvm.KVM_EXIT_INTERNAL_ERROR:
            suberror, count, *words = _internal.unpack_from(run, kvm.RUN_UNION)
            if suberror == kvm.KVM_INTERNAL_ERROR_EMULATION:
                return EmulationFailure(_instruction(words[:count]))
            return InternalError(suberror, tuple(words[:count]))
        case kvm.KVM_EXIT_FAIL_ENTRY:
            return FailEntry(*_fail_entry.unpack_from(run, kvm.RUN_UNION))
        case kvm.KVM_EXIT_IOAPIC_EOI:
            return IoapicEoi(run[kvm.RUN_UNION])
        case _:
            return Unknown(reason)


def _instruction(words: list[int]) -> bytes:
    """The bytes of struct emulation_failure: flags, then a size and up to 15 bytes."""
    if len(words) < 3 or not words[0] & kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES:
        return b""
    size, *content = struct.pack("=2Q", *words[1:3])
    return bytes(content[: min(size, MAX_INSTRUCTION)])
