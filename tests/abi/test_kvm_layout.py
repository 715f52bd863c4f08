"""KVM's ioctl numbers, constants and structures against <linux/kvm.h>, by the system's compiler."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from pathlib import Path

from nagaya.abi import kvm

STRUCTURES = {
    kvm.Regs: "kvm_regs",
    kvm.Segment: "kvm_segment",
    kvm.Dtable: "kvm_dtable",
    kvm.Sregs: "kvm_sregs",
    kvm.Fpu: "kvm_fpu",
    kvm.LapicState: "kvm_lapic_state",
    kvm.MsrEntry: "kvm_msr_entry",
    kvm.Msrs: "kvm_msrs",
    kvm.MsrList: "kvm_msr_list",
    kvm.MsrFilterRange: "kvm_msr_filter_range",
    kvm.MsrFilter: "kvm_msr_filter",
    kvm.CpuidEntry: "kvm_cpuid_entry2",
    kvm.Cpuid: "kvm_cpuid2",
    kvm.MemoryRegion: "kvm_userspace_memory_region",
    kvm.EnableCap: "kvm_enable_cap",
    kvm.IrqLevel: "kvm_irq_level",
    kvm.PicState: "kvm_pic_state",
    kvm.Irqchip: "kvm_irqchip",
    kvm.PitConfig: "kvm_pit_config",
    kvm.RoutingIrqchip: "kvm_irq_routing_irqchip",
    kvm.RoutingMsi: "kvm_irq_routing_msi",
    kvm.RoutingEntry: "kvm_irq_routing_entry",
    kvm.Routing: "kvm_irq_routing",
    kvm.Irqfd: "kvm_irqfd",
    kvm.Ioeventfd: "kvm_ioeventfd",
    kvm.ClockData: "kvm_clock_data",
    kvm.MpState: "kvm_mp_state",
    kvm.VcpuEvents: "kvm_vcpu_events",
    kvm.Debugregs: "kvm_debugregs",
    kvm.Xsave: "kvm_xsave",
    kvm.Xcr: "kvm_xcr",
    kvm.Xcrs: "kvm_xcrs",
}
# Where the header nests what we write flat.
NESTED: dict[type, dict[str, str]] = {
    kvm.VcpuEvents: {
        **{f"exception_{name}": f"exception.{name}" for name in ("nr", "has_error_code", "pending")},
        "exception_injected": "exception.injected",
        "exception_error_code": "exception.error_code",
        **{f"interrupt_{name}": f"interrupt.{name}" for name in ("injected", "nr", "soft", "shadow")},
        **{f"nmi_{name}": f"nmi.{name}" for name in ("injected", "pending", "masked", "pad")},
        **{f"smi_{name}": f"smi.{name}" for name in ("smm", "pending", "smm_inside_nmi", "latched_init")},
        "triple_fault_pending": "triple_fault.pending",
    },
}
RUN = {
    "RUN_IMMEDIATE_EXIT": "immediate_exit",
    "RUN_EXIT_REASON": "exit_reason",
    "RUN_UNION": "hw",
    "RUN_MMIO_DATA": "mmio.data",
    "RUN_MSR_ERROR": "msr.error",
}
UNION = {  # the struct formats: the members that they read
    "RUN_IO": ("io", ("direction", "size", "port", "count", "data_offset")),
    "RUN_MMIO": ("mmio", ("phys_addr", "data", "len", "is_write")),
    "RUN_FAIL_ENTRY": ("fail_entry", ("hardware_entry_failure_reason", "cpu")),
    "RUN_INTERNAL": ("internal", ("suberror", "ndata", "data")),
    "RUN_SYSTEM_EVENT": ("system_event", ("type", "ndata", "data")),
    "RUN_MSR": ("msr", ("error", "reason", "index", "data")),
}


def evaluate(tmp_path: Path, expressions: list[str]) -> dict[str, int]:
    """What the compiler makes of C expressions."""
    source, program = tmp_path / "kvm.c", tmp_path / "kvm"
    lines = ["#include <linux/kvm.h>", "#include <stddef.h>", "#include <stdio.h>", "int main(void) {"]
    lines += [f'printf("%llu\\n", (unsigned long long)({one}));' for one in expressions]
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["gcc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, printed.split()), strict=True))


def test_numbers_are_the_headers(tmp_path: Path) -> None:
    ours = {name: value for name, value in vars(kvm).items() if name.startswith("KVM_")}
    assert evaluate(tmp_path, list(ours)) == ours


def test_structures_are_the_headers(tmp_path: Path) -> None:
    ours = {}
    for kind, name in STRUCTURES.items():
        ours[f"sizeof(struct {name})"] = ctypes.sizeof(kind)
        for field, *_ in kind._fields_:
            spelled = NESTED.get(kind, {}).get(field, field)
            ours[f"offsetof(struct {name}, {spelled})"] = getattr(kind, field).offset
            ours[f"sizeof(((struct {name} *)0)->{spelled})"] = getattr(kind, field).size
    assert evaluate(tmp_path, list(ours)) == ours


def test_every_structure_is_compared() -> None:
    structures = (ctypes.Structure, ctypes.Union)
    ours = {
        value
        for value in vars(kvm).values()
        if isinstance(value, type) and issubclass(value, structures) and value.__module__ == kvm.__name__
    }
    assert ours - {kvm.RoutingTarget, kvm.IrqchipUnion} == set(STRUCTURES)  # those are nameless unions


def test_the_run_page_is_the_headers(tmp_path: Path) -> None:
    ours = {f"offsetof(struct kvm_run, {field})": getattr(kvm, name) for name, field in RUN.items()}
    assert evaluate(tmp_path, list(ours)) == ours


def test_the_formats_read_the_unions_members(tmp_path: Path) -> None:
    page = bytes(range(256))
    for name, (member, fields) in UNION.items():
        offsets = [f"offsetof(struct kvm_run, {member}.{field}) - {kvm.RUN_UNION}" for field in fields]
        sizes = [f"sizeof(((struct kvm_run *)0)->{member}.{field})" for field in fields]
        found = evaluate(tmp_path, offsets + sizes)
        read = struct.unpack_from(getattr(kvm, name), page)
        for at, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            length = min(found[size], 8)
            expected = int.from_bytes(page[found[offset] : found[offset] + length], "little")
            assert read[at] == expected, f"{name}: {fields[at]}"
