"""What a vCPU is to its guest, and how it fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nagaya.abi import kvm, x86
from nagaya.errors import ConflictError, MachineFailedError, UnsupportedError
from nagaya.kvm import msrs
from nagaya.kvm.models import MODELS, Leaves
from nagaya.kvm.probe import probe
from nagaya.testing.flat import CODE, MMIO, Flat, Mode, assemble
from nagaya.testing.flatcode import (
    COUNTER,
    DONE,
    SPIN,
    gate,
    interrupt_counter,
    is_done,
)

pytestmark = pytest.mark.kvm


def failure(flat: Flat) -> MachineFailedError:
    flat.run()
    with flat.changed:
        assert flat.changed.wait_for(lambda: flat.failures, 30)
    return flat.failures[0]


def test_a_triple_fault_is_a_failure_with_registers() -> None:
    with Flat(assemble("ud2", Mode.PROTECTED), Mode.PROTECTED) as flat:
        sregs = flat.vcpu.get_sregs()
        sregs.idt = kvm.Dtable(base=0, limit=0)
        flat.vcpu.set_sregs(sregs)
        error = failure(flat)
        assert error.facts["cause"] == "triple fault"
        assert "vCPU 0: triple fault at rip 0x" in error.message


def test_an_instruction_that_kvm_cannot_emulate_is_a_failure_with_its_bytes() -> None:
    with Flat(assemble(f"mov ${MMIO:#x}, %ebx; mulps (%rbx), %xmm0", Mode.LONG), Mode.LONG) as flat:
        assert "cannot emulate 0f 59 03" in failure(flat).message


def test_a_device_that_raises_ends_the_machine_with_the_cause() -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            return 1 // (address - address)

        def write(self, address: int, size: int, value: int) -> None:
            raise AssertionError

    with Flat(assemble("in $0x70, %al", Mode.PROTECTED), Mode.PROTECTED, ports=Broken()) as flat:
        error = failure(flat)
        assert "internal error: ZeroDivisionError" in error.message
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_when_one_vcpu_fails_the_others_can_be_paused() -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            raise ValueError("broken")

        def write(self, address: int, size: int, value: int) -> None:
            raise ValueError("broken")

    code = assemble("jmp 2f; 2: in $0x70, %al; 3: jmp 3b", Mode.REAL)
    with Flat(code, Mode.REAL, cpus=2, ports=Broken()) as flat:
        failure(flat)
        flat.vcpus.pause()
        assert len(flat.failures) == 1


def test_msrs_outside_the_filter_are_a_general_protection_fault() -> None:
    code = assemble(
        f"""
        {gate(13, "handler")}
        mov $0xc1, %ecx
        rdmsr
        2: jmp 2b
        handler: out %al, ${DONE:#x}
        3: jmp 3b
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert not flat.vm.filters_msrs or flat.vcpu.refused_msrs == {0xC1: 1}


def test_int3_and_fwait_work_in_ring_0() -> None:
    """On a host that emulates ring 0 the completer finishes them."""
    code = assemble(
        f"""
        {gate(3, "handler")}
        fwait
        int3
        behind: out %al, ${DONE:#x}
        2: jmp 2b
        handler: pop %rax; push %rax; out %eax, $0x80; iretq
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        (port, _, returns_to), _ = flat.ports.written
        assert port == 0x80
        assert flat.memory.read(returns_to, 2) == b"\xe6\x99"  # the instruction at `behind`
        assert set(flat.vcpu.completed) <= {"int3", "fwait"}


@pytest.mark.parametrize("model", MODELS)
def test_a_guest_sees_its_model(model: str) -> None:
    """In ring 0: some hosts let the CPU's own CPUID through in ring 3."""
    code = assemble(
        f"""
        mov $1, %eax
        cpuid
        mov %eax, %esi
        mov %ebx, %eax
        out %eax, $0x80
        mov %ecx, %eax
        out %eax, $0x80
        mov $0x40000000, %eax
        cpuid
        mov %ebx, %eax
        out %eax, $0x80
        out %al, ${DONE:#x}
        2: jmp 2b
        """,
        Mode.PROTECTED,
    )
    if model not in probe().models:
        with pytest.raises(UnsupportedError, match="KVM on this host does not give"):
            Flat(code, Mode.PROTECTED, model=model)
        return
    with Flat(code, Mode.PROTECTED, model=model) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        seen = [value for port, _, value in flat.ports.written if port == 0x80]
        flat.vcpus.pause()
        promised = Leaves(flat.vcpu.get_cpuid())
        assert seen == [
            promised.word((1, 0, "ebx")),
            promised.word((1, 0, "ecx")),
            int.from_bytes(x86.KVM_SIGNATURE[:4], "little"),
        ]
        assert x86.Leaf1Ecx(seen[1]).HYPERVISOR


def test_power_on_msrs_are_taken() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat:
        flat.vcpu.set_msrs(msrs.initial())
        assert flat.vcpu.get_msrs(msrs.initial()) == msrs.initial()


def test_an_msr_that_kvm_refuses_is_named() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat, pytest.raises(UnsupportedError, match="MSR 0x12345678 = 0x1"):
        flat.vcpu.set_msrs({x86.MSR_IA32_TSC: 0, 0x1234_5678: 1})


def test_an_idle_guest_does_nothing_on_the_host() -> None:
    with Flat(interrupt_counter(), Mode.LONG, cpus=2) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))

        def switches() -> list[str]:
            return [
                line
                for tid in flat.vcpus.thread_ids.values()
                for line in Path(f"/proc/self/task/{tid}/status").read_text().splitlines()
                if "ctxt_switches" in line
            ]

        deadline = time.monotonic() + 30
        before, now = [""], switches()
        while now != before:  # the kernel updates the clock some 100 ms after the start
            assert time.monotonic() < deadline, "something wakes it up again and again"
            time.sleep(0.5)
            before, now = now, switches()


def test_the_state_of_a_running_vcpu_is_refused() -> None:
    with Flat(assemble(SPIN, Mode.PROTECTED), Mode.PROTECTED) as flat:
        flat.run()
        while not flat.word(COUNTER):
            time.sleep(0.001)
        with pytest.raises(ConflictError, match="vCPU 0 is running"):
            flat.vcpu.get_regs()
        flat.vcpus.pause()
        assert flat.vcpu.get_regs().rip in range(CODE, CODE + 16)


def test_the_clock_runs_and_can_be_set() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat:
        first = flat.vm.get_clock()
        assert flat.vm.get_clock() > first
        flat.vm.set_clock(3600 * 10**9)
        assert 3600 * 10**9 <= flat.vm.get_clock() < 3700 * 10**9


def test_registers_are_what_was_set() -> None:
    with Flat(b"\xf4", Mode.LONG) as flat:
        flat.vcpu.set_regs(kvm.Regs(rax=1, r15=2**64 - 1, rip=CODE, rflags=2))
        regs = flat.vcpu.get_regs()
        assert (regs.rax, regs.r15, regs.rip) == (1, 2**64 - 1, CODE)
        assert x86.EFER(flat.vcpu.get_sregs().efer).LMA
