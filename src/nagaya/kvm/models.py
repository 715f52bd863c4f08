"""CPU models: what CPUID tells a guest, made from what KVM can give it (KVM_GET_SUPPORTED_CPUID).

`host` shows all of that, except what a machine of ours does not have: nested virtualization and
performance counters. The named levels show the features of the x86-64 psABI's microarchitecture levels,
whatever else the host has, so that a guest can move between hosts; a host that lacks one of them is
refused. In every model some things are the host's: vendor, family and model, by which kernels pick their
errata, and what a guest protects itself with (speculation controls, SMEP, SMAP, UMIP).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nagaya.abi import kvm, x86
from nagaya.abi.registers import Register
from nagaya.errors import NotFoundError, UnsupportedError

BRAND = b"Nagaya virtual CPU"  # where KVM gives no brand string

# A feature word: leaf, index, register
_1C = (x86.LEAF_FEATURES, 0, "ecx")
_1D = (x86.LEAF_FEATURES, 0, "edx")
_7B = (x86.LEAF_EXTENDED_FEATURES, 0, "ebx")
_7C = (x86.LEAF_EXTENDED_FEATURES, 0, "ecx")
_7D = (x86.LEAF_EXTENDED_FEATURES, 0, "edx")
_8C = (x86.LEAF_EXTENDED_PROCESSOR, 0, "ecx")
_8D = (x86.LEAF_EXTENDED_PROCESSOR, 0, "edx")
_WORDS: dict[tuple[int, int, str], type[Register]] = {
    _1C: x86.Leaf1Ecx,
    _1D: x86.Leaf1Edx,
    _7B: x86.Leaf7Ebx,
    _7C: x86.Leaf7Ecx,
    _7D: x86.Leaf7Edx,
    _8C: x86.Leaf80000001Ecx,
    _8D: x86.Leaf80000001Edx,
}
Features = dict[tuple[int, int, str], str]


@dataclass(frozen=True, slots=True)
class Model:
    """A CPU model: features that a guest is sure to have, names per CPUID word; None: whatever KVM gives."""

    name: str
    summary: str
    features: Features | None


_V1: Features = {
    _1C: "HYPERVISOR",
    _1D: "FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2",
    _8D: "SYSCALL NX LM",
}
_V2: Features = {
    **_V1,
    _1C: "SSE3 SSSE3 CX16 SSE4_1 SSE4_2 X2APIC POPCNT HYPERVISOR",
    _8C: "LAHF_LM",
}
_V3: Features = {
    **_V2,
    _1C: "SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4_1 SSE4_2 X2APIC MOVBE POPCNT AES XSAVE AVX F16C HYPERVISOR",
    _7B: "BMI1 AVX2 BMI2",
    _8C: "LAHF_LM ABM",
    _8D: "SYSCALL NX RDTSCP LM",
}
_MODELS = (
    Model("host", "all that KVM gives on this host", None),
    Model("x86-64-v1", "any x86-64 CPU", _V1),
    Model("x86-64-v2", "CPUs since 2009: SSE4.2, POPCNT, CX16", _V2),
    Model("x86-64-v3", "CPUs since 2015: AVX2, BMI2, FMA", _V3),
    Model("baseline", "x86-64-v2: moves between all hosts of a site", _V2),
)
MODELS = {model.name: model for model in _MODELS}

# In every named model where the host has it: KVM emulates it, or a guest protects itself with it.
_KEPT: Features = {
    _1C: "X2APIC TSC_DEADLINE",
    _1D: "HTT",
    _7B: "TSC_ADJUST SMEP SMAP",
    _7C: "UMIP",
    _7D: "MD_CLEAR SPEC_CTRL STIBP ARCH_CAPABILITIES SSBD",
}
_NEVER: Features = {_1C: "VMX PDCM MONITOR", _8C: "SVM"}

# Of leaf 0x40000001: clock, steal time, PV EOI, stable clock. `host` shows the rest too.
_PARAVIRTUAL = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 24
_XCR0_AVX = 0x7  # x87, SSE, AVX
_XSAVE_AVX_BYTES = 0x340
_XSAVEOPT = 1 << 0


@dataclass(frozen=True, slots=True)
class Topology:
    """`cpus` cores of one thread each in one package; the APIC id of a core is its number."""

    cpus: int

    @property
    def shift(self) -> int:
        """The bits of an APIC id that number the cores."""
        return (self.cpus - 1).bit_length()


def cpuid(
    model: str, supported: Sequence[kvm.CpuidEntry], *, index: int, cpus: int, tsc_khz: int = 0
) -> tuple[kvm.CpuidEntry, ...]:
    """The CPUID leaves of vCPU `index` of `cpus`. Raises `NotFoundError`, `UnsupportedError`."""
    leaves = Leaves(supported)
    known = MODELS.get(model)
    if known is None:
        raise NotFoundError(f"there is no CPU model {model}", hint=f"one of: {', '.join(MODELS)}")
    missing = missing_features(model, supported)
    if missing:
        raise UnsupportedError(
            f"CPU model {model}: KVM on this host does not give {', '.join(missing)}",
            hint="choose a lower level, or `host`",
        )
    _features(leaves, known)
    _hypervisor(leaves, tsc_khz)
    _timing(leaves, tsc_khz)
    _topology(leaves, index, Topology(cpus))
    _brand(leaves)
    return leaves.entries()


def missing_features(model: str, supported: Sequence[kvm.CpuidEntry]) -> tuple[str, ...]:
    """The features of a named model that this host cannot give, by name."""
    leaves = Leaves(supported)
    wanted = MODELS[model].features or {}
    return tuple(
        name
        for word, names in wanted.items()
        for name in names.split()
        if name != "HYPERVISOR" and not leaves.word(word) & _mask(word, name)
    )


class Leaves:
    """CPUID leaves by (function, index), copied from `entries`."""

    def __init__(self, entries: Iterable[kvm.CpuidEntry]) -> None:
        self._leaves = {
            (entry.function, entry.index): kvm.CpuidEntry.from_buffer_copy(entry) for entry in entries
        }

    def entries(self) -> tuple[kvm.CpuidEntry, ...]:
        """All leaves."""
        return tuple(self._leaves.values())

    def get(self, function: int, index: int = 0) -> kvm.CpuidEntry | None:
        """A leaf that is there."""
        return self._leaves.get((function, index))

    def of(self, function: int) -> Iterator[kvm.CpuidEntry]:
        """All sub-leaves of a leaf."""
        return (entry for (number, _), entry in self._leaves.items() if number == function)

    def put(self, function: int, index: int | None = None, **registers: int) -> None:
        """Replace a leaf, or with an `index` a sub-leaf."""
        flags = 0 if index is None else kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        self._leaves[function, index or 0] = kvm.CpuidEntry(
            function=function, index=index or 0, flags=flags, **registers
        )

    def drop(self, function: int) -> None:
        """Take a leaf away with all its sub-leaves."""
        for key in [key for key in self._leaves if key[0] == function]:
            del self._leaves[key]

    def word(self, word: tuple[int, int, str]) -> int:
        """A register of a leaf; 0 if there is none."""
        entry = self._leaves.get(word[:2])
        return 0 if entry is None else int(getattr(entry, word[2]))

    def mask(self, word: tuple[int, int, str], keep: int) -> None:
        """Clear the bits of a register that `keep` lacks."""
        entry = self._leaves.get(word[:2])
        if entry is not None:
            setattr(entry, word[2], getattr(entry, word[2]) & keep)

    @property
    def last_basic(self) -> int:
        """The highest basic leaf."""
        return self.word((x86.LEAF_BASIC, 0, "eax"))


def _mask(word: tuple[int, int, str], names: str) -> int:
    fields = {field.name: field.mask for field in _WORDS[word].FIELDS}
    return sum(fields[name] for name in names.split())


def _features(leaves: Leaves, model: Model) -> None:
    for word in _WORDS:
        keep = 0xFFFFFFFF & ~_mask(word, _NEVER.get(word, ""))
        if model.features is not None:
            keep &= _mask(word, model.features.get(word, "")) | _mask(word, _KEPT.get(word, ""))
        leaves.mask(word, keep)
    features = leaves.get(x86.LEAF_FEATURES)
    if features is not None:
        features.ecx |= _mask(_1C, "HYPERVISOR")
    leaves.drop(x86.LEAF_PMU)
    if model.features is None:
        return
    last = leaves.last_basic
    for function in {*range(0xE, last + 1)} - {x86.LEAF_TOPOLOGY_V2}:  # PQoS, SGX, PT, AMX, ...
        leaves.drop(function)
    basic = leaves.get(x86.LEAF_BASIC)
    if basic is not None:
        basic.eax = min(last, x86.LEAF_TOPOLOGY_V2)
    for entry in leaves.of(x86.LEAF_EXTENDED_FEATURES):
        entry.eax = 0
        if entry.index:
            entry.ebx = entry.ecx = entry.edx = 0
    leaves.mask((x86.LEAF_KVM_FEATURES, 0, "eax"), _PARAVIRTUAL)
    _xsave(leaves, "XSAVE" in model.features[_1C].split())


def _xsave(leaves: Leaves, avx: bool) -> None:
    if not avx:
        leaves.drop(x86.LEAF_XSTATE)
        return
    extended = leaves.get(x86.LEAF_XSTATE, 2)
    optimised = leaves.word((x86.LEAF_XSTATE, 1, "eax")) & _XSAVEOPT
    leaves.drop(x86.LEAF_XSTATE)
    size = _XSAVE_AVX_BYTES
    leaves.put(x86.LEAF_XSTATE, 0, eax=_XCR0_AVX, ebx=size, ecx=size)
    leaves.put(x86.LEAF_XSTATE, 1, eax=optimised)
    if extended is not None:
        leaves.put(x86.LEAF_XSTATE, 2, eax=extended.eax, ebx=extended.ebx)


def _hypervisor(leaves: Leaves, tsc_khz: int) -> None:
    words = [int.from_bytes(x86.KVM_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8)]
    last = x86.LEAF_HYPERVISOR_TIMING if tsc_khz else x86.LEAF_KVM_FEATURES
    leaves.put(x86.LEAF_HYPERVISOR, eax=last, ebx=words[0], ecx=words[1], edx=words[2])


_APIC_BUS_KHZ = 1_000_000  # KVM's local APIC timer counts ns (APIC_BUS_CYCLE_NS)


def _timing(leaves: Leaves, tsc_khz: int) -> None:
    """Leaf 0x15: TSC = crystal * ebx / eax. Kernels take the crystal for the APIC timer's clock too."""
    if not tsc_khz:
        return
    leaves.put(x86.LEAF_HYPERVISOR_TIMING, eax=tsc_khz, ebx=_APIC_BUS_KHZ)
    if leaves.last_basic >= x86.LEAF_TSC:
        leaves.put(x86.LEAF_TSC, eax=_APIC_BUS_KHZ, ebx=tsc_khz, ecx=_APIC_BUS_KHZ * 1000)
    if leaves.last_basic >= x86.LEAF_FREQUENCY:
        leaves.put(x86.LEAF_FREQUENCY, eax=tsc_khz // 1000)


def _topology(leaves: Leaves, index: int, topology: Topology) -> None:
    """SDM 2A, CPUID leaves 1, 4, 0bH and 1fH; APM 3, E.4.7, E.4.16."""
    siblings = 1 << topology.shift
    features = leaves.get(x86.LEAF_FEATURES)
    if features is not None:
        ebx = x86.Leaf1Ebx(features.ebx)
        features.ebx = ebx.replace(APIC_ID=index, LOGICAL_PROCESSORS=min(siblings, 255))
        htt = x86.Leaf1Edx.HTT.mask
        features.edx = features.edx | htt if topology.cpus > 1 else features.edx & ~htt
    for function in (x86.LEAF_CACHE, x86.LEAF_AMD_CACHE):
        for entry in leaves.of(function):
            cache = x86.Leaf4Eax(entry.eax)
            if cache.TYPE:
                sharing = siblings - 1 if cache.LEVEL > 2 else 0
                cores = min(siblings - 1, 63) if function == x86.LEAF_CACHE else 0
                entry.eax = cache.replace(SHARING=sharing, CORES=cores)
    for function in (x86.LEAF_TOPOLOGY, x86.LEAF_TOPOLOGY_V2):
        leaves.drop(function)
        if leaves.last_basic >= function:
            smt, core = x86.TOPOLOGY_SMT << 8, x86.TOPOLOGY_CORE << 8 | 1
            leaves.put(function, 0, eax=0, ebx=1, ecx=smt, edx=index)
            leaves.put(function, 1, eax=topology.shift, ebx=topology.cpus, ecx=core, edx=index)
    sizes = leaves.get(x86.LEAF_ADDRESS_SIZES)
    if sizes is not None:
        sizes.ecx = topology.shift << 12 | topology.cpus - 1 if _is_amd(leaves) else 0
    if leaves.get(x86.LEAF_AMD_TOPOLOGY) is not None:
        leaves.put(x86.LEAF_AMD_TOPOLOGY, eax=index, ebx=index & 0xFF)


def _is_amd(leaves: Leaves) -> bool:
    return leaves.word((x86.LEAF_BASIC, 0, "ebx")) in (
        int.from_bytes(b"Auth", "little"),
        int.from_bytes(b"Hygo", "little"),
    )


def _brand(leaves: Leaves) -> None:
    if leaves.word((x86.LEAF_BRAND, 0, "eax")):
        return
    text = BRAND.ljust(48, b"\0")
    for number in range(3):
        words = [
            int.from_bytes(text[at : at + 4], "little") for at in range(16 * number, 16 * number + 16, 4)
        ]
        leaves.put(x86.LEAF_BRAND + number, **dict(zip(("eax", "ebx", "ecx", "edx"), words, strict=True)))
