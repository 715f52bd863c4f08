"""Each instruction that the completer finishes."""

from __future__ import annotations

import pytest

from nagaya.abi import kvm, x86
from nagaya.kvm import completer

RIP = 0x1000


class FakeCpu:
    """A vCPU's registers and events."""

    def __init__(self) -> None:
        self.regs = kvm.Regs(rip=RIP, rax=7)
        self.events = kvm.VcpuEvents()

    def get_regs(self) -> kvm.Regs:
        return self.regs

    def set_regs(self, regs: kvm.Regs) -> None:
        self.regs = regs

    def get_events(self) -> kvm.VcpuEvents:
        return self.events

    def set_events(self, events: kvm.VcpuEvents) -> None:
        self.events = events


def test_int3_traps_behind_itself() -> None:
    cpu = FakeCpu()
    assert completer.complete(cpu, b"\xcc\x90") == "int3"
    assert cpu.regs.rip == RIP + 1
    assert (cpu.events.exception_injected, cpu.events.exception_nr) == (1, x86.VECTOR_BP)
    assert cpu.events.exception_has_error_code == 0


def test_fwait_is_passed_by() -> None:
    cpu = FakeCpu()
    assert completer.complete(cpu, b"\x9b\xdb\xe3") == "fwait"
    assert (cpu.regs.rip, cpu.regs.rax) == (RIP + 1, 7)
    assert not cpu.events.exception_injected


@pytest.mark.parametrize("instruction", [b"", b"\x0f\x59\x03", b"\xf2"])
def test_what_is_not_in_the_table_is_left_alone(instruction: bytes) -> None:
    cpu = FakeCpu()
    assert completer.complete(cpu, instruction) is None
    assert cpu.regs.rip == RIP


def test_no_entry_hides_another() -> None:
    opcodes = [entry.opcode for entry in completer.TABLE]
    for at, opcode in enumerate(opcodes):
        assert not any(opcode.startswith(earlier) for earlier in opcodes[:at])
