"""A vCPU's state is saved, and goes on in another VM as if nothing had been."""

from __future__ import annotations

import time

import pytest

from nagaya.abi import kvm
from nagaya.kvm import state
from nagaya.testing.flat import CODE, Flat, Mode, assemble

pytestmark = pytest.mark.kvm

COUNTER = 0x6000
LOOP = assemble(
    f"""
    mov $0x1122334455667788, %r15
    movq %r15, %xmm7
    1: incl {COUNTER:#x}
    inc %rbx
    jmp 1b
    """,
    Mode.RING3,
)


def run_a_while(flat: Flat) -> None:
    before = flat.word(COUNTER)
    flat.run()
    deadline = time.monotonic() + 20
    while flat.word(COUNTER) == before:
        assert not flat.failures, flat.failures[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    flat.vcpus.pause()


def test_a_guest_goes_on_in_another_vm() -> None:
    with Flat(LOOP, Mode.RING3) as first, Flat(b"\xf4", Mode.PROTECTED) as second:
        run_a_while(first)
        saved = state.save(first.vcpu, first.vm.system.msr_indices())
        second.memory.write(0, first.memory.read(0, first.memory.size))
        state.restore(second.vcpu, saved)
        assert bytes(second.vcpu.get_regs()) == bytes(first.vcpu.get_regs())
        run_a_while(second)
        regs = second.vcpu.get_regs()
        assert regs.r15 == 0x1122_3344_5566_7788
        assert regs.rbx > saved.regs.rbx
        assert abs(second.word(COUNTER) - regs.rbx & 0xFFFF_FFFF) <= 1
        assert regs.rip in range(CODE, CODE + len(LOOP))
        xmm7 = second.vcpu.fetch(kvm.KVM_GET_FPU, kvm.Fpu()).xmm[7]
        assert int.from_bytes(bytes(xmm7)[:8], "little") == 0x1122_3344_5566_7788


def test_saving_changes_nothing() -> None:
    with Flat(LOOP, Mode.RING3) as flat:
        run_a_while(flat)
        indices = flat.vm.system.msr_indices()
        first, second = state.save(flat.vcpu, indices), state.save(flat.vcpu, indices)
        for name in ("regs", "sregs", "xsave", "xcrs", "debugregs", "lapic", "events"):
            assert bytes(getattr(first, name)) == bytes(getattr(second, name)), name
        assert first.msrs.keys() == second.msrs.keys()
        assert first.mp_state == second.mp_state == kvm.KVM_MP_STATE_RUNNABLE


def test_a_processor_that_waits_to_be_started_is_restored_so() -> None:
    with Flat(LOOP, Mode.RING3, cpus=2) as flat:
        waiting = flat.vcpus.vcpus[1]
        saved = state.save(waiting, flat.vm.system.msr_indices())
        assert saved.mp_state == kvm.KVM_MP_STATE_UNINITIALIZED
        state.restore(waiting, saved)
        run_a_while(flat)
        assert waiting.get_mp_state() == kvm.KVM_MP_STATE_UNINITIALIZED
