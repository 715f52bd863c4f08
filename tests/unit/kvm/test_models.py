"""CPU models, from the CPUID of two hosts like those that people have."""

from __future__ import annotations

from typing import get_args

import pytest

from nagaya.abi import kvm, x86
from nagaya.abi.registers import Register
from nagaya.errors import NotFoundError, UnsupportedError
from nagaya.kvm.models import MODELS, Leaves, cpuid, missing_features
from nagaya.spec import CpuModel

Table = dict[tuple[int, int], tuple[int, int, int, int]]
V3_1C = (
    "SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4_1 SSE4_2 X2APIC MOVBE POPCNT AES XSAVE AVX F16C RDRAND TSC_DEADLINE"
)
V1_1D = "FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2 SS"


def test_a_spec_may_name_each_of_them() -> None:
    assert tuple(MODELS) == get_args(CpuModel)


def bits(kind: type[Register], names: str) -> int:
    return int(kind.of(**dict.fromkeys(names.split(), 1)))


def text(word: bytes) -> int:
    return int.from_bytes(word, "little")


INTEL: Table = {
    (0, 0): (0x20, text(b"Genu"), text(b"ntel"), text(b"ineI")),
    (1, 0): (0x50654, 0x10800, bits(x86.Leaf1Ecx, V3_1C + " VMX PDCM"), bits(x86.Leaf1Edx, V1_1D + " HTT")),
    (4, 0): (0x7C004121, 0x1C0003F, 0x3F, 0),  # L1d
    (4, 2): (0x7C004143, 0x3C0003F, 0x3FF, 0),  # L2
    (4, 3): (0x7C07C163, 0x280003F, 0x9FFF, 4),  # L3
    (7, 0): (
        2,
        bits(x86.Leaf7Ebx, "FSGSBASE TSC_ADJUST BMI1 HLE AVX2 SMEP BMI2 ERMS INVPCID RTM SMAP CLWB"),
        bits(x86.Leaf7Ecx, "UMIP PKU RDPID"),
        bits(x86.Leaf7Edx, "MD_CLEAR SPEC_CTRL STIBP ARCH_CAPABILITIES SSBD"),
    ),
    (7, 1): (0x1C30, 0, 0, 0),
    (0xA, 0): (0x8300805, 0, 0, 0x8604),
    (0xB, 0): (1, 2, 0x100, 7),
    (0xB, 1): (5, 24, 0x201, 7),
    (0xD, 0): (0x2E7, 0xA88, 0xA88, 0),
    (0xD, 1): (0xF, 0xA08, 0, 0),
    (0xD, 2): (0x100, 0x240, 0, 0),
    (0xD, 5): (0x40, 0x440, 0, 0),
    (0x14, 0): (1, 0xF, 7, 0),
    (0x15, 0): (0, 0, 0, 0),
    (0x16, 0): (0, 0, 0, 0),
    (0x1F, 0): (1, 2, 0x100, 7),
    (0x40000000, 0): (0x40000001, text(b"KVMK"), text(b"VMKV"), text(b"M\0\0\0")),
    (0x40000001, 0): (0x0100_7EFB, 0, 0, 0),
    (0x80000000, 0): (0x80000008, 0, 0, 0),
    (0x80000001, 0): (
        0,
        0,
        bits(x86.Leaf80000001Ecx, "LAHF_LM ABM PREFETCHW"),
        bits(x86.Leaf80000001Edx, "SYSCALL NX PDPE1GB RDTSCP LM"),
    ),
    (0x80000002, 0): (text(b"Inte"), text(b"l Xe"), text(b"on\0\0"), 0),
    (0x80000008, 0): (0x302E, 0, 0, 0),
}
AMD: Table = INTEL | {
    (0, 0): (0x10, text(b"Auth"), text(b"cAMD"), text(b"enti")),
    (0x80000000, 0): (0x8000001E, 0, 0, 0),
    (0x80000001, 0): (
        0,
        0,
        bits(x86.Leaf80000001Ecx, "LAHF_LM CMP_LEGACY SVM ABM SSE4A TOPOEXT"),
        bits(x86.Leaf80000001Edx, "SYSCALL NX PDPE1GB RDTSCP LM"),
    ),
    (0x8000001D, 0): (0x4121, 0x1C0003F, 0x3F, 0),
    (0x8000001D, 3): (0x3C163, 0x3C0003F, 0x3FFF, 1),
    (0x8000001E, 0): (7, 0x107, 0x300, 0),
}
for leaf in (4, 0x14, 0x15, 0x16, 0x1F):
    for key in [key for key in AMD if key[0] == leaf]:
        del AMD[key]
HOSTS = pytest.mark.parametrize("host", [INTEL, AMD], ids=["intel", "amd"])


def entries(table: Table) -> tuple[kvm.CpuidEntry, ...]:
    return tuple(
        kvm.CpuidEntry(function=function, index=index, eax=a, ebx=b, ecx=c, edx=d)
        for (function, index), (a, b, c, d) in table.items()
    )


def leaves(table: Table, model: str = "host", *, index: int = 0, cpus: int = 1, tsc_khz: int = 0) -> Leaves:
    return Leaves(cpuid(model, entries(table), index=index, cpus=cpus, tsc_khz=tsc_khz))


@HOSTS
@pytest.mark.parametrize("model", MODELS)
def test_every_model_works_on_a_host_that_has_all(host: Table, model: str) -> None:
    made = leaves(host, model, cpus=2)
    assert x86.Leaf1Ecx(made.word((1, 0, "ecx"))).HYPERVISOR


@HOSTS
@pytest.mark.parametrize("model", MODELS)
def test_nested_virtualization_and_counters_are_never_there(host: Table, model: str) -> None:
    made = leaves(host, model)
    features = x86.Leaf1Ecx(made.word((1, 0, "ecx")))
    assert not (features.VMX or features.PDCM or features.MONITOR)
    assert not x86.Leaf80000001Ecx(made.word((0x80000001, 0, "ecx"))).SVM
    assert made.get(x86.LEAF_PMU) is None


def test_host_keeps_what_kvm_gives() -> None:
    made = leaves(INTEL)
    assert x86.Leaf7Ebx(made.word((7, 0, "ebx"))) == INTEL[7, 0][1]
    assert made.word((0xD, 0, "eax")) == 0x2E7
    assert made.word((0x80000002, 0, "eax")) == text(b"Inte")


def test_a_level_is_the_same_on_a_host_with_more() -> None:
    more = INTEL | {(7, 0): (2, 0xFFFF_FFFF, 0xFFFF_FFFF, INTEL[7, 0][3])}
    assert leaves(INTEL, "x86-64-v2").word((7, 0, "ebx")) == leaves(more, "x86-64-v2").word((7, 0, "ebx"))
    assert leaves(more, "x86-64-v3").word((7, 0, "ecx")) == bits(x86.Leaf7Ecx, "UMIP")


def test_a_level_ends_with_the_topology() -> None:
    assert leaves(INTEL, "baseline").last_basic == 0x1F
    assert leaves(AMD, "baseline").last_basic == 0x10
    assert leaves(INTEL, "baseline").get(0x14) is None


def test_v2_has_no_avx_and_no_xsave_area() -> None:
    made = leaves(INTEL, "x86-64-v2")
    features = x86.Leaf1Ecx(made.word((1, 0, "ecx")))
    assert (features.AVX, features.XSAVE, features.SSE4_2, features.POPCNT) == (0, 0, 1, 1)
    assert made.get(x86.LEAF_XSTATE) is None


def test_v3_has_avx2_and_its_area_alone() -> None:
    made = leaves(INTEL, "x86-64-v3")
    assert x86.Leaf7Ebx(made.word((7, 0, "ebx"))).AVX2
    assert (made.word((0xD, 0, "eax")), made.word((0xD, 0, "ecx"))) == (7, 0x340)
    assert [entry.index for entry in made.of(x86.LEAF_XSTATE)] == [0, 1, 2]


def test_baseline_is_v2() -> None:
    assert [bytes(entry) for entry in cpuid("baseline", entries(INTEL), index=1, cpus=3)] == [
        bytes(entry) for entry in cpuid("x86-64-v2", entries(INTEL), index=1, cpus=3)
    ]


def test_a_level_keeps_what_a_guest_protects_itself_with() -> None:
    made = leaves(INTEL, "baseline")
    assert made.word((7, 0, "edx")) == INTEL[7, 0][3]
    assert x86.Leaf7Ebx(made.word((7, 0, "ebx"))).SMEP


def test_a_host_that_lacks_a_feature_is_refused_by_its_name() -> None:
    ecx = x86.Leaf1Ecx(INTEL[1, 0][2]).replace(POPCNT=0, AVX=0)
    old = INTEL | {(1, 0): (*INTEL[1, 0][:2], ecx, INTEL[1, 0][3])}
    assert missing_features("baseline", entries(old)) == ("POPCNT",)
    with pytest.raises(UnsupportedError, match="x86-64-v3: KVM on this host does not give POPCNT, AVX"):
        cpuid("x86-64-v3", entries(old), index=0, cpus=1)


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFoundError, match="there is no CPU model pentium") as caught:
        cpuid("pentium", entries(INTEL), index=0, cpus=1)
    assert "baseline" in caught.value.hint


@HOSTS
@pytest.mark.parametrize(("cpus", "shift"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)])
def test_topology(host: Table, cpus: int, shift: int) -> None:
    index = cpus - 1
    made = leaves(host, index=index, cpus=cpus)
    ebx = x86.Leaf1Ebx(made.word((1, 0, "ebx")))
    assert (index, min(1 << shift, 255)) == (ebx.APIC_ID, ebx.LOGICAL_PROCESSORS)
    assert x86.Leaf1Edx(made.word((1, 0, "edx"))) & x86.Leaf1Edx.HTT.mask == (cpus > 1) << 28
    threads, cores = made.get(0xB, 0), made.get(0xB, 1)
    assert threads is not None
    assert cores is not None
    assert (threads.eax, threads.ebx, threads.ecx, threads.edx) == (0, 1, 0x100, index)
    assert (cores.eax, cores.ebx, cores.ecx, cores.edx) == (shift, cpus, 0x201, index)
    assert cores.flags == kvm.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


def test_intel_caches() -> None:
    first, third = (x86.Leaf4Eax(leaves(INTEL, cpus=4).word((4, index, "eax"))) for index in (0, 3))
    assert (first.SHARING, first.CORES) == (0, 3)
    assert (third.SHARING, third.CORES) == (3, 3)
    assert x86.Leaf4Eax(leaves(INTEL, cpus=254).word((4, 3, "eax"))).CORES == 63


def test_amd_topology() -> None:
    made = leaves(AMD, index=2, cpus=3)
    assert made.word((0x80000008, 0, "ecx")) == 0x2002
    assert made.word((0x8000001E, 0, "eax")) == 2
    assert x86.Leaf4Eax(made.word((0x8000001D, 3, "eax"))).SHARING == 3
    assert made.get(0x1F) is None


def test_timing_leaves_give_the_tsc() -> None:
    made = leaves(INTEL, tsc_khz=2_100_000)
    tsc = made.get(0x15)
    assert tsc is not None
    assert tsc.ecx * tsc.ebx // tsc.eax == 2_100_000_000
    assert made.word((0x16, 0, "eax")) == 2100
    assert made.word((0x40000010, 0, "eax")) == 2_100_000
    assert made.word((0x40000000, 0, "eax")) == 0x40000010


def test_without_a_tsc_frequency_there_is_no_timing() -> None:
    made = leaves(INTEL)
    assert made.get(0x40000010) is None
    assert made.word((0x15, 0, "ebx")) == 0


def test_the_hypervisor_is_kvm() -> None:
    entry = leaves(INTEL).get(0x40000000)
    assert entry is not None
    signature = b"".join(int(word).to_bytes(4, "little") for word in (entry.ebx, entry.ecx, entry.edx))
    assert signature == x86.KVM_SIGNATURE


def test_a_host_without_a_brand_gets_ours() -> None:
    nameless = {key: value for key, value in INTEL.items() if key[0] != 0x80000002}
    made = leaves(nameless)
    words = [
        made.word((0x80000002 + number, 0, name))
        for number in range(3)
        for name in ("eax", "ebx", "ecx", "edx")
    ]
    assert b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0") == b"Nagaya virtual CPU"


def test_the_hosts_leaves_are_not_touched() -> None:
    given = entries(INTEL)
    before = [bytes(entry) for entry in given]
    cpuid("baseline", given, index=1, cpus=4, tsc_khz=1_000_000)
    assert [bytes(entry) for entry in given] == before
