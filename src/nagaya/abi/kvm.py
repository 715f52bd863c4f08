"""/dev/kvm: ioctl numbers, structures and constants (linux/kvm.h, asm/kvm.h; Documentation/virt/kvm/api.rst).

Only what Nagaya uses, under the kernel's names. A structure that ends in a flexible array is declared without
it: callers put the header and the entries into one buffer (`nagaya.kvm.system.array`).
"""

from __future__ import annotations

import ctypes

API_VERSION = 12  # the only one since Linux 2.6.22

_u8, _u16, _u32, _u64, _s64 = (
    ctypes.c_uint8,
    ctypes.c_uint16,
    ctypes.c_uint32,
    ctypes.c_uint64,
    ctypes.c_int64,
)


def _all(kind: type[ctypes._SimpleCData[int]], names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


# Structures


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = _all(_u64, "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags")


class Segment(ctypes.Structure):
    """struct kvm_segment: a segment register with its hidden part. `limit` is in bytes."""

    _fields_ = (
        ("base", _u64),
        ("limit", _u32),
        ("selector", _u16),
        *_all(_u8, "type present dpl db s l g avl unusable padding"),
    )


class Dtable(ctypes.Structure):
    """struct kvm_dtable: GDTR or IDTR."""

    _fields_ = (("base", _u64), ("limit", _u16), ("padding", _u16 * 3))


class Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = (
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        *((name, Dtable) for name in ("gdt", "idt")),
        *_all(_u64, "cr0 cr2 cr3 cr4 cr8 efer apic_base"),
        ("interrupt_bitmap", _u64 * 4),
    )


class Fpu(ctypes.Structure):
    """struct kvm_fpu."""

    _fields_ = (
        ("fpr", (_u8 * 16) * 8),
        *_all(_u16, "fcw fsw"),
        *_all(_u8, "ftwx pad1"),
        ("last_opcode", _u16),
        *_all(_u64, "last_ip last_dp"),
        ("xmm", (_u8 * 16) * 16),
        *_all(_u32, "mxcsr pad2"),
    )


class LapicState(ctypes.Structure):
    """struct kvm_lapic_state: the registers of the local APIC."""

    _fields_ = (("regs", _u8 * 0x400),)


class MsrEntry(ctypes.Structure):
    """struct kvm_msr_entry."""

    _fields_ = (("index", _u32), ("reserved", _u32), ("data", _u64))


class Msrs(ctypes.Structure):
    """struct kvm_msrs, before its `MsrEntry` array."""

    _fields_ = _all(_u32, "nmsrs pad")


class MsrList(ctypes.Structure):
    """struct kvm_msr_list, before its array of u32."""

    _fields_ = (("nmsrs", _u32),)


class MsrFilterRange(ctypes.Structure):
    """struct kvm_msr_filter_range: in `bitmap` a 1 allows what `flags` names."""

    _fields_ = (*_all(_u32, "flags nmsrs base"), ("bitmap", ctypes.c_void_p))


class MsrFilter(ctypes.Structure):
    """struct kvm_msr_filter."""

    _fields_ = (("flags", _u32), ("ranges", MsrFilterRange * 16))


class CpuidEntry(ctypes.Structure):
    """struct kvm_cpuid_entry2."""

    _fields_ = (*_all(_u32, "function index flags eax ebx ecx edx"), ("padding", _u32 * 3))


class Cpuid(ctypes.Structure):
    """struct kvm_cpuid2, before its `CpuidEntry` array."""

    _fields_ = _all(_u32, "nent padding")


class MemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = (*_all(_u32, "slot flags"), *_all(_u64, "guest_phys_addr memory_size userspace_addr"))


class EnableCap(ctypes.Structure):
    """struct kvm_enable_cap."""

    _fields_ = (*_all(_u32, "cap flags"), ("args", _u64 * 4), ("pad", _u8 * 64))


class IrqLevel(ctypes.Structure):
    """struct kvm_irq_level."""

    _fields_ = _all(_u32, "irq level")


class PicState(ctypes.Structure):
    """struct kvm_pic_state: one of the two 8259s."""

    _fields_ = _all(
        _u8,
        "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state auto_eoi"
        " rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask",
    )


class IrqchipUnion(ctypes.Union):
    """The union in struct kvm_irqchip."""

    _fields_ = (("pic", PicState), ("dummy", _u8 * 512))


class Irqchip(ctypes.Structure):
    """struct kvm_irqchip."""

    _fields_ = (*_all(_u32, "chip_id pad"), ("chip", IrqchipUnion))


class PitConfig(ctypes.Structure):
    """struct kvm_pit_config."""

    _fields_ = (("flags", _u32), ("pad", _u32 * 15))


class RoutingIrqchip(ctypes.Structure):
    """struct kvm_irq_routing_irqchip."""

    _fields_ = _all(_u32, "irqchip pin")


class RoutingMsi(ctypes.Structure):
    """struct kvm_irq_routing_msi."""

    _fields_ = _all(_u32, "address_lo address_hi data devid")


class RoutingTarget(ctypes.Union):
    """The union in struct kvm_irq_routing_entry."""

    _fields_ = (("irqchip", RoutingIrqchip), ("msi", RoutingMsi), ("pad", _u32 * 8))


class RoutingEntry(ctypes.Structure):
    """struct kvm_irq_routing_entry."""

    _fields_ = (*_all(_u32, "gsi type flags pad"), ("u", RoutingTarget))


class Routing(ctypes.Structure):
    """struct kvm_irq_routing, before its `RoutingEntry` array."""

    _fields_ = _all(_u32, "nr flags")


class Irqfd(ctypes.Structure):
    """struct kvm_irqfd."""

    _fields_ = (*_all(_u32, "fd gsi flags resamplefd"), ("pad", _u8 * 16))


class Ioeventfd(ctypes.Structure):
    """struct kvm_ioeventfd."""

    _fields_ = (
        *_all(_u64, "datamatch addr"),
        ("len", _u32),
        ("fd", ctypes.c_int32),
        ("flags", _u32),
        ("pad", _u8 * 36),
    )


class ClockData(ctypes.Structure):
    """struct kvm_clock_data. All times in ns."""

    _fields_ = (
        ("clock", _u64),
        *_all(_u32, "flags pad0"),
        *_all(_u64, "realtime host_tsc"),
        ("pad", _u32 * 4),
    )


class MpState(ctypes.Structure):
    """struct kvm_mp_state."""

    _fields_ = (("mp_state", _u32),)


class VcpuEvents(ctypes.Structure):
    """struct kvm_vcpu_events (x86)."""

    _fields_ = (
        *_all(_u8, "exception_injected exception_nr exception_has_error_code exception_pending"),
        ("exception_error_code", _u32),
        *_all(_u8, "interrupt_injected interrupt_nr interrupt_soft interrupt_shadow"),
        *_all(_u8, "nmi_injected nmi_pending nmi_masked nmi_pad"),
        *_all(_u32, "sipi_vector flags"),
        *_all(_u8, "smi_smm smi_pending smi_smm_inside_nmi smi_latched_init"),
        ("triple_fault_pending", _u8),
        ("reserved", _u8 * 26),
        ("exception_has_payload", _u8),
        ("exception_payload", _u64),
    )


class Debugregs(ctypes.Structure):
    """struct kvm_debugregs."""

    _fields_ = (("db", _u64 * 4), *_all(_u64, "dr6 dr7 flags"), ("reserved", _u64 * 9))


class Xsave(ctypes.Structure):
    """struct kvm_xsave, before its extra part."""

    _fields_ = (("region", _u32 * 1024),)


class Xcr(ctypes.Structure):
    """struct kvm_xcr."""

    _fields_ = (*_all(_u32, "xcr reserved"), ("value", _u64))


class Xcrs(ctypes.Structure):
    """struct kvm_xcrs."""

    _fields_ = (*_all(_u32, "nr_xcrs flags"), ("xcrs", Xcr * 16), ("padding", _u64 * 16))


# struct kvm_run: offsets of what the run loop reads and writes
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_UNION = 32  # what belongs to the exit's reason
RUN_MMIO_DATA = RUN_UNION + 8
RUN_MSR_ERROR = RUN_UNION

# Layouts of the union's members (struct module; native order)
RUN_IO = "=BBHIQ"  # direction, size, port, count, data_offset
RUN_MMIO = "=QQIB"  # phys_addr, data, len, is_write
RUN_FAIL_ENTRY = "=QI"  # hardware_entry_failure_reason, cpu
RUN_INTERNAL = "=II16Q"  # suberror, ndata, data
RUN_SYSTEM_EVENT = "=II16Q"  # type, ndata, data
RUN_MSR = "=B7xIIQ"  # error, reason, index, data

# ioctls


def _io(direction: int, number: int, size: int = 0) -> int:
    return direction << 30 | size << 16 | 0xAE << 8 | number


def _r(number: int, kind: type) -> int:
    return _io(2, number, ctypes.sizeof(kind))


def _w(number: int, kind: type) -> int:
    return _io(1, number, ctypes.sizeof(kind))


def _rw(number: int, kind: type) -> int:
    return _io(3, number, ctypes.sizeof(kind))


# of /dev/kvm
KVM_GET_API_VERSION = _io(0, 0x00)
KVM_CREATE_VM = _io(0, 0x01)
KVM_GET_MSR_INDEX_LIST = _rw(0x02, MsrList)
KVM_CHECK_EXTENSION = _io(0, 0x03)
KVM_GET_VCPU_MMAP_SIZE = _io(0, 0x04)
KVM_GET_SUPPORTED_CPUID = _rw(0x05, Cpuid)

# of a VM
KVM_CREATE_VCPU = _io(0, 0x41)
KVM_SET_USER_MEMORY_REGION = _w(0x46, MemoryRegion)
KVM_SET_TSS_ADDR = _io(0, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = _w(0x48, _u64)
KVM_CREATE_IRQCHIP = _io(0, 0x60)
KVM_IRQ_LINE = _w(0x61, IrqLevel)
KVM_GET_IRQCHIP = _rw(0x62, Irqchip)
KVM_SET_IRQCHIP = _r(0x63, Irqchip)  # the kernel's spelling
KVM_SET_GSI_ROUTING = _w(0x6A, Routing)
KVM_IRQFD = _w(0x76, Irqfd)
KVM_CREATE_PIT2 = _w(0x77, PitConfig)
KVM_IOEVENTFD = _w(0x79, Ioeventfd)
KVM_SET_CLOCK = _w(0x7B, ClockData)
KVM_GET_CLOCK = _r(0x7C, ClockData)
KVM_ENABLE_CAP = _w(0xA3, EnableCap)
KVM_GET_TSC_KHZ = _io(0, 0xA3)
KVM_X86_SET_MSR_FILTER = _w(0xC6, MsrFilter)

# of a vCPU
KVM_RUN = _io(0, 0x80)
KVM_GET_REGS = _r(0x81, Regs)
KVM_SET_REGS = _w(0x82, Regs)
KVM_GET_SREGS = _r(0x83, Sregs)
KVM_SET_SREGS = _w(0x84, Sregs)
KVM_GET_MSRS = _rw(0x88, Msrs)
KVM_SET_MSRS = _w(0x89, Msrs)
KVM_GET_FPU = _r(0x8C, Fpu)
KVM_GET_LAPIC = _r(0x8E, LapicState)
KVM_SET_LAPIC = _w(0x8F, LapicState)
KVM_SET_CPUID2 = _w(0x90, Cpuid)
KVM_GET_CPUID2 = _rw(0x91, Cpuid)
KVM_GET_MP_STATE = _r(0x98, MpState)
KVM_SET_MP_STATE = _w(0x99, MpState)
KVM_GET_VCPU_EVENTS = _r(0x9F, VcpuEvents)
KVM_SET_VCPU_EVENTS = _w(0xA0, VcpuEvents)
KVM_GET_DEBUGREGS = _r(0xA1, Debugregs)
KVM_SET_DEBUGREGS = _w(0xA2, Debugregs)
KVM_GET_XSAVE = _r(0xA4, Xsave)
KVM_SET_XSAVE = _w(0xA5, Xsave)
KVM_GET_XCRS = _r(0xA6, Xcrs)
KVM_SET_XCRS = _w(0xA7, Xcrs)
KVM_KVMCLOCK_CTRL = _io(0, 0xAD)

# Capabilities
KVM_CAP_IRQCHIP = 0
KVM_CAP_NR_VCPUS = 9
KVM_CAP_MP_STATE = 14
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_IOEVENTFD = 36
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189
KVM_CAP_EXIT_ON_EMULATION_FAILURE = 204

# Why KVM_RUN came back
KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_EXIT_IOAPIC_EOI = 26
KVM_EXIT_X86_RDMSR = 29
KVM_EXIT_X86_WRMSR = 30

KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0

KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
KVM_SYSTEM_EVENT_CRASH = 3

KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
KVM_MSR_FILTER_READ = 1 << 0
KVM_MSR_FILTER_WRITE = 1 << 1
KVM_MSR_FILTER_DEFAULT_DENY = 1 << 0
KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600
KVM_MSR_FILTER_MAX_RANGES = 16

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1

KVM_MEM_READONLY = 1 << 1

KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the kernel's spelling

KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
KVM_IOAPIC_NUM_PINS = 24

KVM_IRQFD_FLAG_DEASSIGN = 1 << 0

KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2

KVM_PIT_SPEAKER_DUMMY = 1
