"""What a guest takes its time from: kvmclock, the local APIC's timer, the TSC deadline."""

from __future__ import annotations

import os
import struct
import subprocess

import pytest

from nagaya.abi import x86
from nagaya.hw import layout
from nagaya.kvm.models import Leaves
from nagaya.testing.flat import CODE_SELECTOR, IDT, Flat, Mode, assemble

pytestmark = pytest.mark.kvm

DONE = 0x99  # a port
STEAL = 0x6040  # struct kvm_steal_time (Documentation/virt/kvm/x86/msr.rst): ns first, aligned to 64 bytes
KVM_FEATURE_STEAL_TIME = 1 << 5
CLOCK = 0x6000  # struct pvclock_vcpu_time_info (asm/pvclock-abi.h)
PVCLOCK = "=IxxxxQQIbBxx"  # version, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags
GUEST_STOPPED = 1 << 1
VECTOR = 0x40
LVT_TIMER, DIVIDE, INITIAL_COUNT, SPURIOUS = 0x320, 0x3E0, 0x380, 0xF0  # SDM 3A, table 11-1
BY_ONE, TSC_DEADLINE = 0xB, 2 << 17


def set_apic(register: int, value: int) -> str:
    return f"mov ${layout.LAPIC + register:#x}, %edi; movl ${value:#x}, (%edi)"


def wait_for_interrupt(arm: str, mode: int = 0) -> bytes:
    """A guest that arms a timer, sleeps, and says that it was woken."""
    return assemble(
        f"""
        mov $handler, %eax
        mov %ax, {IDT + 16 * VECTOR:#x}
        movw ${CODE_SELECTOR}, {IDT + 16 * VECTOR + 2:#x}
        movw $0x8e00, {IDT + 16 * VECTOR + 4:#x}
        {set_apic(SPURIOUS, 0x1FF)}
        {set_apic(LVT_TIMER, VECTOR | mode)}
        {arm}
        sti
        1: hlt
        jmp 1b
        handler: out %al, ${DONE:#x}
        2: jmp 2b
        """,
        Mode.LONG,
    )


def is_done(flat: Flat) -> bool:
    return bool(flat.ports.written)


def test_the_apic_timer_wakes_a_guest() -> None:
    arm = f"{set_apic(DIVIDE, BY_ONE)}\n{set_apic(INITIAL_COUNT, 1_000_000)}"
    with Flat(wait_for_interrupt(arm), Mode.LONG) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))


def test_the_tsc_deadline_wakes_a_guest_that_is_promised_it() -> None:
    arm = f"rdtsc; add $1000000, %eax; adc $0, %edx; mov ${x86.MSR_IA32_TSC_DEADLINE:#x}, %ecx; wrmsr"
    with Flat(wait_for_interrupt(arm, TSC_DEADLINE), Mode.LONG) as flat:
        assert x86.Leaf1Ecx(Leaves(flat.vcpu.get_cpuid()).word((1, 0, "ecx"))).TSC_DEADLINE
        flat.run()
        flat.wait(lambda: is_done(flat))


def test_kvmclock_counts_and_tells_of_a_pause() -> None:
    code = assemble(
        f"""
        mov ${x86.MSR_KVM + 1:#x}, %ecx /* MSR_KVM_SYSTEM_TIME_NEW */
        mov ${CLOCK | 1:#x}, %eax
        xor %edx, %edx
        wrmsr
        2: out %al, ${DONE:#x}
        jmp 2b
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:

        def clock() -> tuple[int, ...]:
            return struct.unpack(PVCLOCK, flat.memory.read(CLOCK, 32))

        flat.run()
        flat.wait(lambda: is_done(flat))
        version, timestamp, _, multiplier, _, flags = clock()
        assert version % 2 == 0
        assert timestamp > 0
        assert multiplier > 0
        assert not flags & GUEST_STOPPED
        flat.vcpus.pause()
        flat.run()
        flat.wait(lambda: bool(clock()[5] & GUEST_STOPPED))


def test_a_guest_sees_the_time_that_its_cpu_was_taken_from_it() -> None:
    code = assemble(
        f"""
        mov ${x86.MSR_KVM + 3:#x}, %ecx /* MSR_KVM_STEAL_TIME */
        mov ${STEAL | 1:#x}, %eax
        xor %edx, %edx
        wrmsr
        2: out %al, ${DONE:#x}
        jmp 2b
        """,
        Mode.LONG,
    )
    before = os.sched_getaffinity(0)
    cpu = min(before)
    rival = subprocess.Popen(["taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"])
    try:
        os.sched_setaffinity(0, {cpu})  # the vCPU's thread too, which begins here
        with Flat(code, Mode.LONG) as flat:
            features = Leaves(flat.vcpu.get_cpuid()).word((x86.LEAF_KVM_FEATURES, 0, "eax"))
            assert features & KVM_FEATURE_STEAL_TIME
            flat.run()
            flat.wait(lambda: struct.unpack("=Q", flat.memory.read(STEAL, 8))[0] > 1_000_000)
    finally:
        os.sched_setaffinity(0, before)
        rival.kill()
        rival.wait()
