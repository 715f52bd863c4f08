"""AVX, which needs the guest's consent (CR4.OSXSAVE, XCR0): it computes, and its registers are state."""

from __future__ import annotations

import struct

import pytest

from nagaya.abi import kvm, x86
from nagaya.kvm import state
from nagaya.kvm.models import Leaves
from nagaya.testing.flat import Flat, Mode, assemble

pytestmark = pytest.mark.kvm

XCR0_AVX = 0x7  # x87, SSE, AVX (SDM 1, 13.3)
INPUT, SUM, SEEN = 0x6000, 0x6040, 0x6080
DONE, GO_ON = 0x99, 0x6090
NUMBERS = struct.pack("<8f", *range(1, 9))
CODE = assemble(
    f"""
    xor %ecx, %ecx
    xgetbv
    mov %eax, {SEEN:#x}
    vmovups {INPUT:#x}, %ymm7
    1: out %al, ${DONE:#x}
    cmpl $0, {GO_ON:#x}
    je 1b
    vaddps %ymm7, %ymm7, %ymm0
    vmovups %ymm0, {SUM:#x}
    2: out %al, ${DONE + 1:#x}
    jmp 2b
    """,
    Mode.RING3,
)


def promised() -> bool:
    with Flat(b"\xf4", Mode.PROTECTED) as flat:
        return bool(x86.Leaf1Ecx(Leaves(flat.vcpu.get_cpuid()).word((x86.LEAF_FEATURES, 0, "ecx"))).AVX)


def consent(flat: Flat) -> None:
    """What an operating system does before its programs may use AVX."""
    sregs = flat.vcpu.get_sregs()
    sregs.cr4 |= x86.CR4.OSXSAVE.mask
    flat.vcpu.set_sregs(sregs)
    wanted = kvm.Xcrs(nr_xcrs=1)
    wanted.xcrs[0].value = XCR0_AVX
    flat.vcpu.store(kvm.KVM_SET_XCRS, wanted)
    flat.memory.write(INPUT, NUMBERS)


def reaches(flat: Flat, port: int) -> None:
    flat.run()
    flat.wait(lambda: any(address == port for address, _, _ in flat.ports.written))
    flat.vcpus.pause()


def test_avx_computes_and_its_registers_go_along_to_another_vm() -> None:
    if not promised():
        return  # then no guest may use it: `nagaya.kvm.models` is tested for that
    with Flat(CODE, Mode.RING3) as first, Flat(b"\xf4", Mode.PROTECTED) as second:
        consent(first)
        reaches(first, DONE)
        # A host that emulates ring 0 leaves its own XCR0 in place for ring 3, with AVX-512 and AMX in it.
        assert first.word(SEEN) & XCR0_AVX == XCR0_AVX
        saved = state.save(first.vcpu, first.vm.system.msr_indices())
        second.memory.write(0, first.memory.read(0, first.memory.size))
        second.memory.write(GO_ON, b"\1")
        state.restore(second.vcpu, saved)
        reaches(second, DONE + 1)
        assert struct.unpack("<8f", second.memory.read(SUM, 32)) == tuple(range(2, 18, 2))
