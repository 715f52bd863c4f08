"""What a CPU model promises works: instructions of each feature are executed in the guest, in ring 3."""

from __future__ import annotations

import re

import pytest

from nagaya.abi import x86
from nagaya.abi.registers import Register
from nagaya.kvm.models import MODELS, Leaves, missing_features
from nagaya.kvm.system import Kvm
from nagaya.testing.bare import Bare
from nagaya.testing.payload import HERE, build

pytestmark = pytest.mark.kvm

WORDS: tuple[tuple[int, str, type[Register]], ...] = (
    (x86.LEAF_FEATURES, "ecx", x86.Leaf1Ecx),
    (x86.LEAF_FEATURES, "edx", x86.Leaf1Edx),
    (x86.LEAF_EXTENDED_FEATURES, "ebx", x86.Leaf7Ebx),
    (x86.LEAF_EXTENDED_FEATURES, "ecx", x86.Leaf7Ecx),
    (x86.LEAF_EXTENDED_PROCESSOR, "ecx", x86.Leaf80000001Ecx),
    (x86.LEAF_EXTENDED_PROCESSOR, "edx", x86.Leaf80000001Edx),
)
TABLE = re.compile(r'\{"(\w+)", (0x[0-9a-f]+|\d+), E[A-D]X,')
TRIED = {name for name, _ in TABLE.findall((HERE / "guests" / "features.c").read_text())}


def _available() -> list[str]:
    with Kvm() as kvm:
        supported = kvm.supported_cpuid()
    return [name for name in MODELS if not missing_features(name, supported)]


def _promised(guest: Bare) -> set[str]:
    """The features that the guest's CPU was given, of those that the payload can try."""
    leaves = Leaves(guest.machine.vcpus.vcpus[0].get_cpuid())
    return {
        field.name
        for leaf, word, kind in WORDS
        for field in kind.FIELDS
        if leaves.word((leaf, 0, word)) & field.mask
    } & TRIED


@pytest.mark.parametrize("model", list(MODELS))
def test_each_promised_feature_works(model: str) -> None:
    if model not in _available():
        with Kvm() as kvm:
            assert missing_features(model, kvm.supported_cpuid()), "refused for a reason"
        return
    with Bare(build("features"), cpu_model=model) as guest:
        promised = _promised(guest)
        guest.finish()
    assert {"FPU", "CX8", "CMOV", "SSE", "SSE2"} <= promised
    shown = set(re.findall(r"^HAS (\w+)$", guest.output, re.MULTILINE))
    assert promised <= shown, "promised by CPUID, and not seen by the guest"
