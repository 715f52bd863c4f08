"""Finishes instructions that KVM's emulator hands back, on hosts where it runs the guest's ring 0.

The guest has not executed the instruction: `rip` points at it. Each entry of `TABLE` either moves on or
raises the exception that the CPU would. On hosts with VT-x or AMD-V nothing of this runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nagaya.abi import kvm, x86


class Cpu(Protocol):
    """What the completer needs of a vCPU."""

    def get_regs(self) -> kvm.Regs:
        """The general registers."""

    def set_regs(self, regs: kvm.Regs) -> None:
        """Set the general registers."""

    def get_events(self) -> kvm.VcpuEvents:
        """Events on their way into the guest."""

    def set_events(self, events: kvm.VcpuEvents) -> None:
        """Inject events."""


@dataclass(frozen=True, slots=True)
class Completion:
    """An instruction: its bytes, its name, and what finishes it."""

    opcode: bytes
    name: str
    finish: Callable[[Cpu, int], None]  # of a vCPU and the instruction's length


def complete(cpu: Cpu, instruction: bytes) -> str | None:
    """Finish the instruction at the front of these bytes; its name, or None if the table lacks it."""
    for entry in TABLE:
        if instruction.startswith(entry.opcode):
            entry.finish(cpu, len(entry.opcode))
            return entry.name
    return None


def _skip(cpu: Cpu, length: int) -> None:
    regs = cpu.get_regs()
    regs.rip += length
    cpu.set_regs(regs)


def _breakpoint(cpu: Cpu, length: int) -> None:
    """#BP is a trap: the handler returns behind the instruction (SDM 3A, 6.5)."""
    _skip(cpu, length)
    events = cpu.get_events()
    events.exception_injected = 1
    events.exception_nr = x86.VECTOR_BP
    events.exception_has_error_code = 0
    cpu.set_events(events)


TABLE = (
    Completion(b"\xcc", "int3", _breakpoint),
    Completion(b"\x9b", "fwait", _skip),  # the host's FPU reports what it finds at the next x87 instruction
)
