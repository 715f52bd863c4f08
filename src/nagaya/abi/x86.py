"""x86-64: control registers, segments, MSRs and CPUID as typed registers (Intel SDM 2A, 3A and 4; AMD APM).

`str(CR0(value))` names the bits that are set.
"""

from __future__ import annotations

from nagaya.abi import kvm
from nagaya.abi.registers import Bits, Register, bit


class CR0(Register):
    """SDM 3A, 2.5."""

    PE = bit(0)
    MP = bit(1)
    EM = bit(2)
    TS = bit(3)
    ET = bit(4)
    NE = bit(5)
    WP = bit(16)
    AM = bit(18)
    NW = bit(29)
    CD = bit(30)
    PG = bit(31)


class CR4(Register):
    """SDM 3A, 2.5."""

    VME = bit(0)
    PVI = bit(1)
    TSD = bit(2)
    DE = bit(3)
    PSE = bit(4)
    PAE = bit(5)
    MCE = bit(6)
    PGE = bit(7)
    PCE = bit(8)
    OSFXSR = bit(9)
    OSXMMEXCPT = bit(10)
    UMIP = bit(11)
    LA57 = bit(12)
    FSGSBASE = bit(16)
    PCIDE = bit(17)
    OSXSAVE = bit(18)
    SMEP = bit(20)
    SMAP = bit(21)
    PKE = bit(22)


class EFER(Register):
    """SDM 3A, 2.2.1."""

    SCE = bit(0)
    LME = bit(8)
    LMA = bit(10)
    NXE = bit(11)


class RFLAGS(Register):
    """SDM 3A, 2.3."""

    CF = bit(0)
    RESERVED1 = bit(1)  # always set
    PF = bit(2)
    AF = bit(4)
    ZF = bit(6)
    SF = bit(7)
    TF = bit(8)
    IF = bit(9)
    DF = bit(10)
    OF = bit(11)
    IOPL = Bits(12, 13)
    NT = bit(14)
    RF = bit(16)
    VM = bit(17)
    AC = bit(18)
    ID = bit(21)


class PageEntry(Register):
    """An entry of a page table at any level (SDM 3A, 4.5); the address is in place."""

    P = bit(0)
    RW = bit(1)
    US = bit(2)
    A = bit(5)
    D = bit(6)
    PS = bit(7)


class SegmentDescriptor(Register):
    """A GDT entry of 8 bytes (SDM 3A, 3.4.5)."""

    LIMIT_LOW = Bits(0, 15)
    BASE_LOW = Bits(16, 39)
    TYPE = Bits(40, 43)
    S = bit(44)
    DPL = Bits(45, 46)
    P = bit(47)
    LIMIT_HIGH = Bits(48, 51)
    AVL = bit(52)
    L = bit(53)
    DB = bit(54)
    G = bit(55)
    BASE_HIGH = Bits(56, 63)


TYPE_DATA = 0x3  # read, write, accessed
TYPE_CODE = 0xB  # execute, read, accessed
TYPE_TSS = 0xB  # busy, 32 or 64 bits

_FLAT = SegmentDescriptor.of(LIMIT_LOW=0xFFFF, LIMIT_HIGH=0xF, G=1, S=1, P=1)
CODE64 = _FLAT.replace(TYPE=TYPE_CODE, L=1)
CODE32 = _FLAT.replace(TYPE=TYPE_CODE, DB=1)
DATA32 = _FLAT.replace(TYPE=TYPE_DATA, DB=1)  # the data segment of long mode too
TSS32 = SegmentDescriptor.of(LIMIT_LOW=0x67, P=1, TYPE=TYPE_TSS)


def segment(selector: int, descriptor: SegmentDescriptor) -> kvm.Segment:
    """The segment register that loading `selector` with this `descriptor` behind it gives."""
    limit = descriptor.LIMIT_HIGH << 16 | descriptor.LIMIT_LOW
    return kvm.Segment(
        base=descriptor.BASE_HIGH << 24 | descriptor.BASE_LOW,
        limit=limit << 12 | 0xFFF if descriptor.G else limit,
        selector=selector,
        type=descriptor.TYPE,
        present=descriptor.P,
        dpl=descriptor.DPL,
        db=descriptor.DB,
        s=descriptor.S,
        l=descriptor.L,
        g=descriptor.G,
        avl=descriptor.AVL,
    )


def real_mode_segment(base: int) -> kvm.Segment:
    """A segment of real mode: 64 KiB from `base`, a multiple of 16 below 1 MiB."""
    return kvm.Segment(base=base, limit=0xFFFF, selector=base >> 4, type=TYPE_DATA, present=1, s=1)


# Exception vectors (SDM 3A, 6.3.1)
VECTOR_BP = 3

# MSRs (SDM volume 4; the kernel's arch/x86/include/asm/msr-index.h has these names)
MSR_IA32_TSC = 0x10
MSR_IA32_APICBASE = 0x1B
MSR_IA32_FEATURE_CONTROL = 0x3A
MSR_IA32_TSC_ADJUST = 0x3B
MSR_IA32_SPEC_CTRL = 0x48
MSR_IA32_PRED_CMD = 0x49
MSR_IA32_UCODE_REV = 0x8B
MSR_MTRRCAP = 0xFE
MSR_IA32_ARCH_CAPABILITIES = 0x10A
MSR_IA32_FLUSH_CMD = 0x10B
MSR_IA32_SYSENTER_CS = 0x174
MSR_IA32_SYSENTER_EIP = 0x176
MSR_IA32_MCG_CAP = 0x179
MSR_PLATFORM_INFO = 0xCE
MSR_IA32_MISC_ENABLE = 0x1A0
MSR_MTRR_PHYSBASE0 = 0x200
MSR_IA32_PAT = 0x277
MSR_MTRR_DEF_TYPE = 0x2FF
MSR_IA32_MC0_CTL = 0x400
MSR_IA32_TSC_DEADLINE = 0x6E0
MSR_IA32_XSS = 0xDA0
MSR_KVM = 0x4B564D00  # and up: MSR_KVM_WALL_CLOCK_NEW (asm/kvm_para.h)
MSR_EFER = 0xC0000080
MSR_LSTAR = 0xC0000082
MSR_SYSCALL_MASK = 0xC0000084
MSR_FS_BASE = 0xC0000100
MSR_GS_BASE = 0xC0000101
MSR_TSC_AUX = 0xC0000103

MISC_ENABLE_FAST_STRING = 1 << 0
MTRR_ENABLE_WRITE_BACK = 1 << 11 | 6  # MTRR_DEF_TYPE: MTRRs on, fixed ones off, the rest of memory write-back


# CPUID (SDM 2A, CPUID; AMD APM 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst)
LEAF_BASIC = 0x0
LEAF_FEATURES = 0x1
LEAF_CACHE = 0x4
LEAF_EXTENDED_FEATURES = 0x7
LEAF_PMU = 0xA
LEAF_TOPOLOGY = 0xB
LEAF_XSTATE = 0xD
LEAF_TSC = 0x15
LEAF_FREQUENCY = 0x16
LEAF_TOPOLOGY_V2 = 0x1F
LEAF_HYPERVISOR = 0x40000000
LEAF_KVM_FEATURES = 0x40000001
LEAF_HYPERVISOR_TIMING = 0x40000010
LEAF_EXTENDED_PROCESSOR = 0x80000001
LEAF_BRAND = 0x80000002  # and the next two
LEAF_AMD_CACHE = 0x8000001D
LEAF_AMD_TOPOLOGY = 0x8000001E
LEAF_ADDRESS_SIZES = 0x80000008

KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"

TOPOLOGY_SMT = 1
TOPOLOGY_CORE = 2


class Leaf1Ebx(Register):
    """CPUID 1, EBX."""

    BRAND = Bits(0, 7)
    CLFLUSH = Bits(8, 15)
    LOGICAL_PROCESSORS = Bits(16, 23)
    APIC_ID = Bits(24, 31)


class Leaf1Ecx(Register):
    """CPUID 1, ECX: the feature bits that Nagaya names."""

    SSE3 = bit(0)
    PCLMULQDQ = bit(1)
    MONITOR = bit(3)
    VMX = bit(5)
    SSSE3 = bit(9)
    FMA = bit(12)
    CX16 = bit(13)
    PDCM = bit(15)
    PCID = bit(17)
    SSE4_1 = bit(19)
    SSE4_2 = bit(20)
    X2APIC = bit(21)
    MOVBE = bit(22)
    POPCNT = bit(23)
    TSC_DEADLINE = bit(24)
    AES = bit(25)
    XSAVE = bit(26)
    OSXSAVE = bit(27)
    AVX = bit(28)
    F16C = bit(29)
    RDRAND = bit(30)
    HYPERVISOR = bit(31)


class Leaf1Edx(Register):
    """CPUID 1, EDX: the feature bits that Nagaya names."""

    FPU = bit(0)
    VME = bit(1)
    DE = bit(2)
    PSE = bit(3)
    TSC = bit(4)
    MSR = bit(5)
    PAE = bit(6)
    MCE = bit(7)
    CX8 = bit(8)
    APIC = bit(9)
    SEP = bit(11)
    MTRR = bit(12)
    PGE = bit(13)
    MCA = bit(14)
    CMOV = bit(15)
    PAT = bit(16)
    PSE36 = bit(17)
    CLFSH = bit(19)
    MMX = bit(23)
    FXSR = bit(24)
    SSE = bit(25)
    SSE2 = bit(26)
    SS = bit(27)
    HTT = bit(28)


class Leaf4Eax(Register):
    """CPUID 4, EAX: a cache."""

    TYPE = Bits(0, 4)
    LEVEL = Bits(5, 7)
    SHARING = Bits(14, 25)  # logical processors that share it, minus 1
    CORES = Bits(26, 31)  # cores in the package, minus 1


class Leaf7Ebx(Register):
    """CPUID 7.0, EBX: the feature bits that Nagaya names."""

    FSGSBASE = bit(0)
    TSC_ADJUST = bit(1)
    BMI1 = bit(3)
    HLE = bit(4)
    AVX2 = bit(5)
    SMEP = bit(7)
    BMI2 = bit(8)
    ERMS = bit(9)
    INVPCID = bit(10)
    RTM = bit(11)
    RDSEED = bit(18)
    ADX = bit(19)
    SMAP = bit(20)
    CLFLUSHOPT = bit(23)
    CLWB = bit(24)
    SHA = bit(29)


class Leaf7Ecx(Register):
    """CPUID 7.0, ECX: the feature bits that Nagaya names."""

    UMIP = bit(2)
    PKU = bit(3)
    OSPKE = bit(4)
    LA57 = bit(16)
    RDPID = bit(22)


class Leaf7Edx(Register):
    """CPUID 7.0, EDX: the feature bits that Nagaya names."""

    MD_CLEAR = bit(10)
    SPEC_CTRL = bit(26)  # IBRS and IBPB
    STIBP = bit(27)
    ARCH_CAPABILITIES = bit(29)
    SSBD = bit(31)


class Leaf80000001Ecx(Register):
    """CPUID 80000001h, ECX: the feature bits that Nagaya names."""

    LAHF_LM = bit(0)
    CMP_LEGACY = bit(1)
    SVM = bit(2)
    CR8_LEGACY = bit(4)
    ABM = bit(5)  # LZCNT
    SSE4A = bit(6)
    PREFETCHW = bit(8)
    TOPOEXT = bit(22)


class Leaf80000001Edx(Register):
    """CPUID 80000001h, EDX: the feature bits that Nagaya names."""

    SYSCALL = bit(11)
    NX = bit(20)
    PDPE1GB = bit(26)
    RDTSCP = bit(27)
    LM = bit(29)
