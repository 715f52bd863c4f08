"""Model-specific registers: which ones a guest may touch, and what they hold at power-on.

What `ALLOWED` lacks, and what KVM does not know, answers with #GP, as on a CPU without it;
`Vcpu.refused_msrs` counts such tries. That keeps whole subsystems of the host's kernel from guests:
performance counters, branch records, processor trace, Hyper-V, nested virtualization. The filter does not see
x2APIC registers.
"""

from __future__ import annotations

import ctypes
import functools

from nagaya.abi import kvm, x86
from nagaya.kvm.system import Kvm, ioctl

# Ranges of MSR numbers, both ends included, and what they are.
ALLOWED = (
    (0x10, 0x12, "time-stamp counter; kvmclock's old pair"),
    (x86.MSR_IA32_APICBASE, x86.MSR_IA32_APICBASE, "local APIC"),
    (x86.MSR_IA32_FEATURE_CONTROL, x86.MSR_IA32_TSC_ADJUST, "feature control, TSC adjust"),
    (x86.MSR_IA32_SPEC_CTRL, x86.MSR_IA32_PRED_CMD, "speculation controls"),
    (0x79, 0x79, "microcode update; KVM ignores it"),
    (x86.MSR_IA32_UCODE_REV, x86.MSR_IA32_UCODE_REV, "microcode revision"),
    (x86.MSR_PLATFORM_INFO, x86.MSR_PLATFORM_INFO, "platform info: CPUID faulting"),
    (0xE1, 0xE1, "UMWAIT control"),
    (x86.MSR_MTRRCAP, x86.MSR_MTRRCAP, "MTRR"),
    (x86.MSR_IA32_ARCH_CAPABILITIES, x86.MSR_IA32_FLUSH_CMD, "which mitigations a guest can leave out"),
    (0x122, 0x122, "TSX control"),
    (0x140, 0x140, "CPUID faulting"),
    (x86.MSR_IA32_SYSENTER_CS, x86.MSR_IA32_SYSENTER_EIP, "SYSENTER"),
    (x86.MSR_IA32_MCG_CAP, 0x17B, "machine check"),
    (x86.MSR_IA32_MISC_ENABLE, x86.MSR_IA32_MISC_ENABLE, "miscellaneous features"),
    (0x1C4, 0x1C5, "extended feature disable (AMX)"),
    (x86.MSR_MTRR_PHYSBASE0, x86.MSR_IA32_PAT, "MTRR, PAT"),
    (x86.MSR_MTRR_DEF_TYPE, x86.MSR_MTRR_DEF_TYPE, "MTRR"),
    (x86.MSR_IA32_MC0_CTL, 0x47F, "machine check banks"),
    (0x6A0, 0x6A8, "control-flow enforcement"),
    (x86.MSR_IA32_TSC_DEADLINE, x86.MSR_IA32_TSC_DEADLINE, "local APIC timer"),
    (x86.MSR_IA32_XSS, x86.MSR_IA32_XSS, "supervisor state of XSAVES"),
    (x86.MSR_KVM, x86.MSR_KVM + 0xFF, "kvmclock, steal time, asynchronous page faults, PV EOI"),
    (x86.MSR_EFER, x86.MSR_SYSCALL_MASK, "EFER, SYSCALL"),
    (x86.MSR_FS_BASE, x86.MSR_TSC_AUX, "segment bases, TSC aux"),
    (0xC0010015, 0xC0010015, "AMD: hardware configuration"),
    (0xC001001F, 0xC001001F, "AMD: northbridge configuration"),
    (0xC001011F, 0xC001011F, "AMD: speculation control of KVM"),
    (0xC0011029, 0xC0011029, "AMD: LFENCE serialises"),
)

# (base, count): one bitmap each, since KVM takes 16 ranges at most.
WINDOWS = (
    (0x0, 0x300),
    (0x400, 0x300),
    (x86.MSR_IA32_XSS, 1),
    (x86.MSR_KVM, 0x100),
    (x86.MSR_EFER, 0x84),
    (0xC0010000, 0x1100),
)


def install_filter(system: Kvm, vm_fd: int) -> bool:
    """Refuse all but `ALLOWED`; says whether the host can (Linux 5.10).

    Of all that is done to a new VM this comes first: once it has memory, the kernel waits 13 ms here for a
    grace period (KVM_X86_SET_MSR_FILTER, synchronize_srcu).
    """
    if not system.check_extension(kvm.KVM_CAP_X86_MSR_FILTER):
        return False
    program, _ = _program()
    ioctl(vm_fd, kvm.KVM_X86_SET_MSR_FILTER, program)
    return True


@functools.cache  # most of a millisecond of a machine's start, and always the same
def _program() -> tuple[kvm.MsrFilter, list[object]]:
    """The filter, and the bitmaps that it points to."""
    program = kvm.MsrFilter(flags=kvm.KVM_MSR_FILTER_DEFAULT_DENY)
    alive: list[object] = []
    for number, (base, count) in enumerate(WINDOWS):
        bits = ctypes.create_string_buffer(bitmap(base, count))
        alive.append(bits)
        program.ranges[number] = kvm.MsrFilterRange(
            flags=kvm.KVM_MSR_FILTER_READ | kvm.KVM_MSR_FILTER_WRITE,
            nmsrs=count,
            base=base,
            bitmap=ctypes.addressof(bits),
        )
    return program, alive


def initial() -> dict[int, int]:
    """What firmware would have set before it starts a kernel."""
    return {
        x86.MSR_IA32_MISC_ENABLE: x86.MISC_ENABLE_FAST_STRING,
        x86.MSR_MTRR_DEF_TYPE: x86.MTRR_ENABLE_WRITE_BACK,
    }


def bitmap(base: int, count: int) -> bytes:
    """A bit for each of `count` MSRs from `base`: 1 allows it."""
    bits = 0
    for first, last, _ in ALLOWED:
        for index in range(max(first, base), min(last, base + count - 1) + 1):
            bits |= 1 << index - base
    return bits.to_bytes((count + 7) // 8, "little")
