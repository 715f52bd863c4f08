"""The MSR filter's table."""

from __future__ import annotations

import pytest

from nagaya.abi import kvm, x86
from nagaya.kvm import msrs


def allowed(index: int) -> bool:
    """What the bitmaps say."""
    for base, count in msrs.WINDOWS:
        if base <= index < base + count:
            at = index - base
            return bool(msrs.bitmap(base, count)[at // 8] >> at % 8 & 1)
    return False


def test_the_bitmaps_say_what_the_table_says() -> None:
    edges = {index for first, last, _ in msrs.ALLOWED for index in (first - 1, first, last, last + 1)}
    for index in edges:
        assert allowed(index) == any(first <= index <= last for first, last, _ in msrs.ALLOWED), hex(index)


def test_the_kernel_takes_windows_of_this_number_and_size() -> None:
    assert len(msrs.WINDOWS) <= kvm.KVM_MSR_FILTER_MAX_RANGES
    assert all(len(msrs.bitmap(*one)) <= kvm.KVM_MSR_FILTER_MAX_BITMAP_SIZE for one in msrs.WINDOWS)


@pytest.mark.parametrize(
    "index", [0xC1, 0x186, 0x309, 0x345, 0x38F, 0x480, 0x491, 0x560, 0x4000_0000, 0xC000_1117, 0xC001_0114]
)
def test_counters_traces_and_nested_virtualization_are_refused(index: int) -> None:
    assert not allowed(index)


@pytest.mark.parametrize(
    "index", [x86.MSR_EFER, x86.MSR_LSTAR, x86.MSR_GS_BASE, x86.MSR_IA32_TSC, x86.MSR_KVM + 1, 0x26F]
)
def test_what_kernels_live_on_is_allowed(index: int) -> None:
    assert allowed(index)
