"""What is made of the page that a vCPU shares with the kernel."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.abi import kvm
from nagaya.kvm import exits

PAGE = 4096


def page(reason: int, layout: str = "", *members: int, data: bytes = b"") -> memoryview:
    run = bytearray(3 * PAGE)
    struct.pack_into("=I", run, kvm.RUN_EXIT_REASON, reason)
    if layout:
        struct.pack_into(layout, run, kvm.RUN_UNION, *members)
    run[PAGE : PAGE + len(data)] = data
    return memoryview(run)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_port_write_has_its_value(size: int) -> None:
    run = page(
        kvm.KVM_EXIT_IO, kvm.RUN_IO, kvm.KVM_EXIT_IO_OUT, size, 0x3F8, 1, PAGE, data=b"\x44\x33\x22\x11\xff"
    )
    value = 0x1122_3344 & (1 << 8 * size) - 1
    assert exits.parse(run) == exits.PortWrite(0x3F8, size, (value,))


def test_a_string_write_has_all_values_in_order() -> None:
    run = page(kvm.KVM_EXIT_IO, kvm.RUN_IO, kvm.KVM_EXIT_IO_OUT, 2, 0x1F0, 3, PAGE, data=b"abcdef--")
    assert exits.parse(run) == exits.PortWrite(0x1F0, 2, (0x6261, 0x6463, 0x6665))


def test_a_port_read_says_where_the_values_go() -> None:
    run = page(kvm.KVM_EXIT_IO, kvm.RUN_IO, kvm.KVM_EXIT_IO_IN, 4, 0xCFC, 2, PAGE)
    assert exits.parse(run) == exits.PortRead(0xCFC, 4, 2, PAGE)


@given(address=st.integers(0, 2**52 - 1), size=st.sampled_from([1, 2, 4, 8]), raw=st.integers(0, 2**64 - 1))
def test_a_store_keeps_only_its_bytes(address: int, size: int, raw: int) -> None:
    run = page(kvm.KVM_EXIT_MMIO, kvm.RUN_MMIO, address, raw, size, 1)
    assert exits.parse(run) == exits.MemoryWrite(address, size, raw & (1 << 8 * size) - 1)


def test_a_load() -> None:
    run = page(kvm.KVM_EXIT_MMIO, kvm.RUN_MMIO, 0xD000_0000, 0, 4, 0)
    assert exits.parse(run) == exits.MemoryRead(0xD000_0000, 4)


@pytest.mark.parametrize(
    ("reason", "write"), [(kvm.KVM_EXIT_X86_RDMSR, False), (kvm.KVM_EXIT_X86_WRMSR, True)]
)
def test_an_msr_access(reason: int, write: bool) -> None:
    run = page(reason, kvm.RUN_MSR, 0, kvm.KVM_MSR_EXIT_REASON_FILTER, 0xC1, 5)
    assert exits.parse(run) == exits.MsrAccess(0xC1, write)


def test_an_emulation_failure_has_the_instructions_bytes() -> None:
    flags = kvm.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    words = struct.unpack("=2Q", bytes([2, 0xCD, 0x80]).ljust(16, b"\x90"))
    run = page(kvm.KVM_EXIT_INTERNAL_ERROR, "=IIQ2Q", kvm.KVM_INTERNAL_ERROR_EMULATION, 4, flags, *words)
    assert exits.parse(run) == exits.EmulationFailure(b"\xcd\x80")


@pytest.mark.parametrize(("count", "flags"), [(0, 1), (2, 1), (4, 0)])
def test_an_emulation_failure_may_have_none(count: int, flags: int) -> None:
    run = page(kvm.KVM_EXIT_INTERNAL_ERROR, "=IIQ", kvm.KVM_INTERNAL_ERROR_EMULATION, count, flags)
    assert exits.parse(run) == exits.EmulationFailure(b"")


def test_an_internal_error_has_its_words() -> None:
    run = page(kvm.KVM_EXIT_INTERNAL_ERROR, "=II3Q", kvm.KVM_INTERNAL_ERROR_DELIVERY_EV, 2, 7, 8, 9)
    assert exits.parse(run) == exits.InternalError(kvm.KVM_INTERNAL_ERROR_DELIVERY_EV, (7, 8))


def test_a_system_event_has_its_words() -> None:
    run = page(kvm.KVM_EXIT_SYSTEM_EVENT, "=IIQ", kvm.KVM_SYSTEM_EVENT_RESET, 1, 5)
    assert exits.parse(run) == exits.SystemEvent(kvm.KVM_SYSTEM_EVENT_RESET, (5,))


def test_an_entry_that_failed() -> None:
    run = page(kvm.KVM_EXIT_FAIL_ENTRY, kvm.RUN_FAIL_ENTRY, 0x8000_0021, 3)
    assert exits.parse(run) == exits.FailEntry(0x8000_0021, 3)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (kvm.KVM_EXIT_HLT, exits.Halt()),
        (kvm.KVM_EXIT_SHUTDOWN, exits.Shutdown()),
        (99, exits.Unknown(99)),
    ],
)
def test_exits_without_members(reason: int, expected: exits.Exit) -> None:
    assert exits.parse(page(reason)) == expected
