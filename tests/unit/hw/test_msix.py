"""MSI-X: when a vector is open, what it delivers, and that no guest breaks it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nagaya.abi import pci
from nagaya.errors import ResourceError, UsageError
from nagaya.hw.msix import FLAGS, Msix
from nagaya.testing.wires import FakeInterrupts, FakeVector

APIC = 0xFEE00000
ENABLE = pci.MsixFlags.of(ENABLE=1)
VECTORS = 5


def _program(msix: Msix, index: int, payload: int, *, masked: bool = False, address: int = APIC) -> None:
    msix.write(16 * index, 8, address)
    msix.write(16 * index + 8, 4, payload)
    msix.write(16 * index + 12, 4, masked)


@pytest.fixture
def msix(interrupts: FakeInterrupts) -> Msix:
    one = Msix(interrupts, VECTORS, 1)
    one.master(True)
    return one


def test_a_vector_opens_when_nothing_masks_it(msix: Msix, interrupts: FakeInterrupts) -> None:
    vector = interrupts.vectors[2]
    _program(msix, 2, 0x4042)
    assert interrupts.vectors[2].open is None
    msix.capability.write(pci.PCI_MSIX_FLAGS, 2, ENABLE)
    assert vector.open == (APIC, 0x4042)
    assert [one.open for one in interrupts.vectors].count(None) == VECTORS - 1
    msix.write(16 * 2 + 12, 4, 1)
    _opens_again(vector, lambda: msix.write(16 * 2 + 12, 4, 0))
    msix.capability.write(2, 2, ENABLE.replace(MASKALL=1))
    _opens_again(vector, lambda: msix.capability.write(2, 2, ENABLE))
    msix.capability.write(2, 2, 0)
    _opens_again(vector, lambda: msix.capability.write(2, 2, ENABLE))
    msix.master(False)
    _opens_again(vector, lambda: msix.master(True))


def _opens_again(vector: FakeVector, unmask: Callable[[], object]) -> None:
    assert vector.open is None
    unmask()
    assert vector.open == (APIC, 0x4042)


def test_a_masked_signal_is_pending_and_follows(msix: Msix, interrupts: FakeInterrupts) -> None:
    pending = msix.size // 2
    msix.capability.write(2, 2, ENABLE)
    _program(msix, 3, 0x33, masked=True)
    assert msix.read(pending, 8) == 0
    msix.signal(3)
    msix.signal(3)
    assert msix.read(pending, 8) == 0b1000
    assert msix.read(pending, 1) == 0b1000
    assert msix.read(pending + 1, 4) == 0
    msix.write(16 * 3 + 12, 4, 0)
    assert interrupts.vectors[3].delivered == [(APIC, 0x33)]
    assert msix.read(pending, 8) == 0


def test_a_new_address_is_followed(msix: Msix, interrupts: FakeInterrupts) -> None:
    msix.capability.write(2, 2, ENABLE)
    _program(msix, 0, 1)
    msix.write(0, 4, APIC | 0x1003)
    msix.write(9, 1, 0x20)
    assert interrupts.vectors[0].open == (APIC | 0x1000, 0x2001)
    assert msix.read(0, 8) == APIC | 0x1000


@pytest.mark.parametrize("address", [0, 0x1000, 0xFEC00000, 0xFEF00000, 0xFFFFFFFC, 1 << 32 | APIC])
def test_what_is_no_local_apic_stays_masked(msix: Msix, interrupts: FakeInterrupts, address: int) -> None:
    msix.capability.write(2, 2, ENABLE)
    _program(msix, 0, 1, address=address)
    assert interrupts.vectors[0].open is None


def test_the_capability_says_how_many_and_where(interrupts: FakeInterrupts) -> None:
    small, large = Msix(interrupts, 1, 0), Msix(interrupts, 129, 4)
    assert (small.size, large.size) == (0x1000, 0x2000)
    assert large.capability.read(0, 4) >> 16 == 128
    assert large.capability.read(pci.PCI_MSIX_TABLE, 4) == 4
    assert large.capability.read(pci.PCI_MSIX_PBA, 4) == 0x1004
    large.capability.write(2, 2, 0xFFFF)
    assert large.capability[FLAGS] == 0xC080
    with pytest.raises(UsageError, match="2048"):
        Msix(interrupts, 2049, 0)


def test_reset_masks_and_forgets(msix: Msix, interrupts: FakeInterrupts) -> None:
    msix.capability.write(2, 2, ENABLE)
    _program(msix, 0, 1)
    msix.signal(1)
    msix.reset()
    assert interrupts.vectors[0].open is None
    assert msix.read(msix.size // 2, 8) == 0
    assert [msix.read(16 * index + 12, 4) for index in range(VECTORS)] == [1] * VECTORS
    assert msix.read(0, 8) == 0


def test_too_few_vectors_leave_none_open() -> None:
    interrupts = FakeInterrupts(limit=3)
    with pytest.raises(ResourceError):
        Msix(interrupts, 4, 0)
    assert [one.fd for one in interrupts.vectors] == [-1] * 3


class AnyGuest(RuleBasedStateMachine):
    """Any accesses, any signals: open exactly when it should be, and no signal is lost or doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupts = FakeInterrupts()
        self.msix = Msix(self.interrupts, VECTORS, 1)
        self.master = False

    @rule(
        offset=st.one_of(st.integers(0, 16 * VECTORS + 8), st.integers(0, 4095)),
        size=st.sampled_from((1, 2, 4, 8)),
        value=st.one_of(st.just(APIC), st.integers(0, (1 << 64) - 1), st.integers(0, 3)),
    )
    def write(self, offset: int, size: int, value: int) -> None:
        self.msix.write(offset, min(size, 4096 - offset), value & ((1 << (8 * min(size, 4096 - offset))) - 1))

    @rule(index=st.integers(0, VECTORS - 1))
    def program(self, index: int) -> None:
        _program(self.msix, index, index)

    @rule(flags=st.sampled_from((0, 0x8000, 0xC000, 0x4000, 0xFFFF)))
    def control(self, flags: int) -> None:
        self.msix.capability.write(2, 2, flags)

    @rule(allowed=st.booleans())
    def allow(self, allowed: bool) -> None:
        self.master = allowed
        self.msix.master(allowed)

    @rule(index=st.integers(0, VECTORS - 1))
    def signal(self, index: int) -> None:
        self.msix.signal(index)
        self.interrupts.vectors[index].collect()

    @invariant()
    def open_as_it_should(self) -> None:
        flags = self.msix.capability[FLAGS]
        pending = self.msix.read(self.msix.size // 2, 8)
        for index, vector in enumerate(self.interrupts.vectors):
            address, payload = self.msix.read(16 * index, 8), self.msix.read(16 * index + 8, 4)
            masked = self.msix.read(16 * index + 12, 4)
            assert masked in (0, 1)
            opened = (
                self.master
                and flags.ENABLE
                and not flags.MASKALL
                and not masked
                and address >> 20 == APIC >> 20
            )
            assert vector.open == ((address, payload) if opened else None)
            held = False
            try:
                held = os.eventfd_read(vector.fd) > 0
                os.eventfd_write(vector.fd, 1)
            except BlockingIOError:
                pass
            assert held == bool(pending >> index & 1)

    def teardown(self) -> None:
        self.interrupts.close()


TestAnyGuest = AnyGuest.TestCase
