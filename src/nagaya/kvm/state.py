"""The whole state of a vCPU, to be put back later or elsewhere. Plain functions on parked vCPUs.

Order matters on the way back (KVM's API document says so piecewise; QEMU and Firecracker agree): segments and
control registers before MSRs, since the APIC's base decides on x2APIC; XCR0 before the XSAVE area that it
enables; the local APIC before the TSC deadline, which its timer's mode decides on; events last, for the rest
clears them.
"""

from __future__ import annotations

from dataclasses import dataclass

from nagaya.abi import kvm, x86
from nagaya.kvm.vcpu import Vcpu


@dataclass(frozen=True, slots=True)
class VcpuState:
    """What `save` found."""

    regs: kvm.Regs
    sregs: kvm.Sregs
    xsave: kvm.Xsave
    xcrs: kvm.Xcrs
    debugregs: kvm.Debugregs
    lapic: kvm.LapicState
    msrs: dict[int, int]
    mp_state: int
    events: kvm.VcpuEvents


def save(vcpu: Vcpu, msr_indices: tuple[int, ...]) -> VcpuState:
    """The state of a parked vCPU; `msr_indices` are `Kvm.msr_indices()`. The guest does not notice."""
    mp_state = vcpu.get_mp_state()  # first: it lets KVM take in pending INIT and SIPI
    return VcpuState(
        regs=vcpu.get_regs(),
        sregs=vcpu.get_sregs(),
        xsave=vcpu.fetch(kvm.KVM_GET_XSAVE, kvm.Xsave()),
        xcrs=vcpu.fetch(kvm.KVM_GET_XCRS, kvm.Xcrs()),
        debugregs=vcpu.fetch(kvm.KVM_GET_DEBUGREGS, kvm.Debugregs()),
        lapic=vcpu.fetch(kvm.KVM_GET_LAPIC, kvm.LapicState()),
        msrs=_msrs(vcpu, msr_indices),
        mp_state=mp_state,
        events=vcpu.get_events(),
    )


def restore(vcpu: Vcpu, state: VcpuState) -> None:
    """Give a parked vCPU of the same CPU model this state. Raises `UnsupportedError` if an MSR is refused."""
    vcpu.set_mp_state(state.mp_state)
    vcpu.set_sregs(state.sregs)
    vcpu.set_regs(state.regs)
    vcpu.store(kvm.KVM_SET_XCRS, state.xcrs)
    vcpu.store(kvm.KVM_SET_XSAVE, state.xsave)
    vcpu.store(kvm.KVM_SET_DEBUGREGS, state.debugregs)
    vcpu.store(kvm.KVM_SET_LAPIC, state.lapic)
    late = {index: value for index, value in state.msrs.items() if index in _LATE}
    vcpu.set_msrs({index: value for index, value in state.msrs.items() if index not in _LATE})
    vcpu.set_msrs(late)
    vcpu.set_events(state.events)


_LATE = (x86.MSR_IA32_TSC_DEADLINE,)


def _msrs(vcpu: Vcpu, indices: tuple[int, ...]) -> dict[int, int]:
    """All that KVM gives, reading on behind each that it lists but does not give to this CPU model."""
    found: dict[int, int] = {}
    at = 0
    while at < len(indices):
        some = vcpu.get_msrs(indices[at:])
        found |= some
        at += len(some) + 1
    return found
