"""Interrupts and doorbells, as far as they can be seen without a guest (tests/guest/test_vcpu.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nagaya.abi import kvm
from nagaya.errors import ConflictError, ResourceError, UsageError
from nagaya.hw import layout
from nagaya.kvm.irq import KvmDoorbells, KvmInterrupts
from nagaya.kvm.system import Kvm
from nagaya.kvm.vm import Vm

pytestmark = pytest.mark.kvm


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Kvm() as system, Vm(system) as made:
        yield made


@pytest.mark.parametrize("number", [-1, kvm.KVM_IOAPIC_NUM_PINS])
def test_a_line_that_is_not_there_is_refused(vm: Vm, number: int) -> None:
    with pytest.raises(UsageError, match="has no line"):
        KvmInterrupts(vm).line(number)


def test_vectors_run_out_and_come_back(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm.system, "check_extension", lambda _: layout.FIRST_MSI_GSI + 2)
    interrupts = KvmInterrupts(vm)
    vectors = [interrupts.vector() for _ in range(2)]
    with pytest.raises(ResourceError, match="all interrupt routes"):
        interrupts.vector()
    vectors.pop().close()
    vectors.append(interrupts.vector())
    for vector in vectors:
        vector.close()


def test_a_vector_gives_its_eventfd_back_in_any_state(vm: Vm) -> None:
    interrupts = KvmInterrupts(vm)
    masked, unmasked = interrupts.vector(), interrupts.vector()
    unmasked.unmask(layout.LAPIC, 0x40)
    fds = [masked.fd, unmasked.fd]
    for vector in (masked, unmasked):
        vector.close()
        vector.close()
        assert vector.fd == -1
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_masking_and_unmasking_are_repeatable(vm: Vm) -> None:
    vector = KvmInterrupts(vm).vector()
    for _ in range(3):
        vector.unmask(layout.LAPIC, 0x40)
        vector.unmask(layout.LAPIC, 0x40)
        vector.mask()
        vector.mask()
    vector.close()


def test_a_doorbell_is_one_of_a_kind(vm: Vm) -> None:
    doorbells, fd = KvmDoorbells(vm), os.eventfd(0)
    doorbells.bind(fd, layout.PCI_MMIO32, 2)
    with pytest.raises(ConflictError, match="a doorbell at 0xc0000000 already"):
        doorbells.bind(fd, layout.PCI_MMIO32, 2)
    doorbells.unbind(fd, layout.PCI_MMIO32, 2)
    doorbells.bind(fd, layout.PCI_MMIO32, 2)
    os.close(fd)


def test_a_doorbell_of_an_odd_size_is_refused(vm: Vm) -> None:
    fd = os.eventfd(0)
    with pytest.raises(ResourceError, match="no doorbell of 3 bytes"):
        KvmDoorbells(vm).bind(fd, layout.PCI_MMIO32, 3)
    os.close(fd)
