"""What a driver may do to a virtio device over PCI: anything, and the backend gets only what is sound."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.unit.hw.virtio_slot import (
    CONFIG_WCE,
    EVENT_IDX,
    FLUSH,
    MIB,
    NOTIFICATION_DATA,
    VERSION_1,
    FakeBackend,
    Slot,
)

from nagaya.abi import pci, virtio
from nagaya.abi.virtio import Status
from nagaya.errors import ResourceError, UsageError
from nagaya.hw import layout
from nagaya.hw.virtio_pci import BAR_SIZE, COMMON, CONFIG, ISR, NOTIFY
from nagaya.testing.wires import FakeDoorbells


def test_a_driver_finds_its_structures(slot: Slot) -> None:
    found = {}
    at = slot.ecam.read(slot.at + pci.PCI_CAPABILITY_LIST, 1)
    while at:
        if slot.ecam.read(slot.at + at, 1) == pci.PCI_CAP_ID_VNDR:
            kind, bar = (slot.ecam.read(slot.at + at + offset, 1) for offset in (3, 4))
            offset, length = (slot.ecam.read(slot.at + at + offset, 4) for offset in (8, 12))
            found[kind] = (bar, offset, length)
            assert slot.ecam.read(slot.at + at + 2, 1) in (16, 20)
        at = slot.ecam.read(slot.at + at + 1, 1)
    assert found == {
        1: (0, COMMON, 56),
        2: (0, NOTIFY, 4096),
        3: (0, ISR, 1),
        4: (0, CONFIG, 60),
        5: (0, 0, 0),
    }
    assert slot.ecam.read(slot.at, 4) == 0x1042_1AF4
    assert slot.read(virtio.VIRTIO_PCI_COMMON_NUMQ, 2) == 2


def test_features_that_need_this_side_are_not_offered(slot: Slot) -> None:
    assert slot.offered() == VERSION_1 | EVENT_IDX | FLUSH | CONFIG_WCE


@pytest.mark.parametrize("features", [0, EVENT_IDX, VERSION_1 | NOTIFICATION_DATA, VERSION_1 | 1 << 63])
def test_wrong_features_are_not_agreed_on(slot: Slot, features: int) -> None:
    slot.agree(features)
    assert not slot.status.FEATURES_OK


def test_features_do_not_change_once_agreed_on(slot: Slot) -> None:
    slot.agree(VERSION_1 | FLUSH)
    slot.accept(0)
    slot.queue(0)
    slot.status = 15
    assert slot.backend.agreed == VERSION_1 | FLUSH


def test_the_backend_gets_the_rings(slot: Slot) -> None:
    slot.drive()
    first, second = slot.backend.running
    assert (first.index, first.size, first.base) == (0, 16, 0)
    assert (first.desc, first.driver, first.device) == (0x1000, 0x2000, 0x3000)
    assert (second.desc, second.driver, second.device) == tuple(
        (4 << 30) + n for n in (0x1000, 0x2000, 0x3000)
    )
    assert first.kick != second.kick
    assert slot.status == 15


def test_a_reset_stops_and_forgets(slot: Slot) -> None:
    slot.drive()
    slot.status = 0
    assert slot.status == 0 and not slot.backend.running
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_SELECT, 2, 1)
    assert slot.read(virtio.VIRTIO_PCI_COMMON_Q_SIZE, 2) == 256
    assert slot.read(virtio.VIRTIO_PCI_COMMON_Q_ENABLE, 2) == 0
    assert slot.read(virtio.VIRTIO_PCI_COMMON_Q_DESCLO, 8) == 0
    slot.drive()
    assert slot.backend.starts == 2


def test_a_queue_of_its_own_vector_calls_by_it(slot: Slot) -> None:
    slot.agree()
    slot.queue(0, vector=1)
    slot.queue(1, vector=77)
    assert slot.read(virtio.VIRTIO_PCI_COMMON_Q_MSIX, 2) == virtio.VIRTIO_MSI_NO_VECTOR
    slot.status = 15
    vectors = [one.fd for one in slot.interrupts.vectors]
    assert slot.backend.running[0].call == vectors[1]
    assert slot.backend.running[1].call not in vectors


def test_doorbells_move_with_the_bar(slot: Slot) -> None:
    slot.drive()
    kicks = [ring.kick for ring in slot.backend.running]
    bound = {(slot.base + NOTIFY + 4 * n, 0, None): fd for n, fd in enumerate(kicks)}
    assert slot.doorbells.bound == bound
    slot.ecam.write(slot.at + pci.PCI_COMMAND, 2, 0)
    assert slot.doorbells.bound == {}
    slot.ecam.write(slot.at + pci.PCI_BASE_ADDRESS_0, 4, layout.PCI_MMIO32 + 64 * MIB)
    slot.ecam.write(slot.at + pci.PCI_COMMAND, 2, pci.Command.of(MEMORY=1))
    assert set(slot.doorbells.bound) == {
        (layout.PCI_MMIO32 + 64 * MIB + NOTIFY + 4 * n, 0, None) for n in (0, 1)
    }


def test_a_kick_that_no_doorbell_takes_arrives(slot: Slot) -> None:
    slot.drive()
    slot.write(NOTIFY + 4, 2, 1)
    slot.write(NOTIFY + 400, 2, 1)
    assert os.eventfd_read(slot.backend.running[1].kick) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(slot.backend.running[0].kick)


def test_no_doorbell_left_is_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ResourceError("none left")

    monkeypatch.setattr(FakeDoorbells, "bind", refuse)
    slot = Slot()
    slot.drive()
    slot.write(NOTIFY, 2, 0)
    assert os.eventfd_read(slot.backend.running[0].kick) == 1
    slot.close()


def test_configuration_is_read_and_its_change_interrupts(slot: Slot) -> None:
    assert slot.read(CONFIG + 8, 4) == 0x0B0A0908
    assert slot.read(CONFIG + 58, 4) == 0x3B3A and slot.read(CONFIG + 200, 8) == 0
    slot.write(virtio.VIRTIO_PCI_COMMON_MSIX, 2, 2)
    slot.drive()
    slot.write(virtio.VIRTIO_PCI_COMMON_MSIX, 2, 2)
    before = slot.read(virtio.VIRTIO_PCI_COMMON_CFGGENERATION, 1)
    slot.backend.config[8] = 99
    assert slot.read(CONFIG + 8, 1) == 8
    slot.device.config_changed()
    assert slot.read(CONFIG + 8, 1) == 99
    assert slot.read(virtio.VIRTIO_PCI_COMMON_CFGGENERATION, 1) == before + 1
    assert os.eventfd_read(slot.interrupts.vectors[2].fd) == 1
    assert slot.read(ISR, 1) == virtio.VIRTIO_ISR_CONFIG and slot.read(ISR, 1) == 0


def test_only_what_a_feature_makes_writable_is_written(slot: Slot) -> None:
    slot.drive(VERSION_1 | CONFIG_WCE)
    slot.write(CONFIG, 8, 0)
    slot.write(CONFIG + virtio.VIRTIO_BLK_WCE, 1, 1)
    assert slot.backend.config[0:8] == bytes(range(8))
    assert slot.backend.config[virtio.VIRTIO_BLK_WCE] == 1 == slot.read(CONFIG + virtio.VIRTIO_BLK_WCE, 1)
    slot.drive(VERSION_1)
    slot.write(CONFIG + virtio.VIRTIO_BLK_WCE, 1, 0)
    assert slot.backend.config[virtio.VIRTIO_BLK_WCE] == 1


def test_suspended_it_goes_on_where_it_was(slot: Slot) -> None:
    slot.drive()
    slot.device.suspend()
    slot.device.suspend()
    assert not slot.backend.running
    slot.device.resume()
    slot.device.resume()
    assert [ring.base for ring in slot.backend.running] == [7, 7]
    slot.device.suspend()
    slot.status = 0
    slot.device.resume()
    assert not slot.backend.running and slot.backend.starts == 2


def test_a_backend_that_does_not_start_needs_a_reset(slot: Slot) -> None:
    slot.backend.broken = "gone"
    slot.drive()
    assert slot.status.NEEDS_RESET and slot.device.cause == "the backend does not start: gone"
    slot.backend.broken = ""
    slot.drive()
    assert slot.status == 15 and slot.device.cause == ""


def test_a_backend_that_does_not_stop_does_not_keep_the_driver(slot: Slot) -> None:
    slot.drive()
    slot.backend.broken = "hung"
    slot.status = 0
    assert slot.status == 0
    slot.backend.broken = ""
    slot.drive()
    slot.backend.broken = "hung"
    slot.device.suspend()
    assert slot.device.cause == "the backend does not stop: hung"
    slot.device.config_changed()
    slot.backend.broken = ""


def test_needs_reset_tells_the_driver(slot: Slot) -> None:
    slot.drive()
    slot.write(virtio.VIRTIO_PCI_COMMON_MSIX, 2, 0)
    slot.device.fail("first")
    slot.device.fail("second")
    assert slot.status == 15 | Status.NEEDS_RESET.mask
    slot.status = 15
    assert slot.status.NEEDS_RESET
    assert os.eventfd_read(slot.interrupts.vectors[0].fd) == 2
    assert slot.device.cause == "first"


def test_the_window_in_configuration_space_reaches_the_bar(slot: Slot) -> None:
    at = slot.ecam.read(slot.at + pci.PCI_CAPABILITY_LIST, 1)
    while slot.ecam.read(slot.at + at, 1) != pci.PCI_CAP_ID_VNDR or slot.ecam.read(slot.at + at + 3, 1) != 5:
        at = slot.ecam.read(slot.at + at + 1, 1)
    window = slot.at + at

    def aim(offset: int, length: int) -> None:
        slot.ecam.write(window + 8, 4, offset)
        slot.ecam.write(window + 12, 4, length)

    aim(virtio.VIRTIO_PCI_COMMON_STATUS, 1)
    slot.ecam.write(window + 16, 4, 1)
    assert slot.status == 1 and slot.ecam.read(window + 16, 4) == 1
    aim(CONFIG + 8, 2)
    assert slot.ecam.read(window + 16, 4) == 0x0908
    for offset, length in ((CONFIG, 3), (BAR_SIZE - 2, 4), (BAR_SIZE, 1), (1, 2), (0xFFFFFFFC, 4)):
        aim(offset, length)
        slot.ecam.write(window + 16, 4, 0xFFFFFFFF)
        assert slot.ecam.read(window + 16, 4) == 0


def test_sizes_and_numbers_of_queues_are_bounded() -> None:
    for queues in (0, 257):
        with pytest.raises(ResourceError):
            Slot(FakeBackend(queues=queues))
    for size in (0, 3, 65536):
        with pytest.raises(UsageError):
            Slot(queue_size=size)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(0, 0xFFFF),
    desc=st.integers(0, (1 << 64) - 1) | st.integers(MIB - 5000, MIB + 16),
    driver=st.integers(0, (1 << 64) - 1) | st.integers(MIB - 600, MIB + 16),
    device=st.integers(0, (1 << 64) - 1) | st.integers((4 << 30) - 16, (4 << 30) + 16),
)
def test_only_sound_rings_reach_the_backend(size: int, desc: int, driver: int, device: int) -> None:
    slot = Slot()
    slot.agree()
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_SIZE, 2, size)
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_DESCLO, 8, desc)
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_AVAILLO, 8, driver)
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_USEDLO, 8, device)
    slot.write(virtio.VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1)
    slot.status = 15
    assert bool(slot.backend.running) != bool(slot.status.NEEDS_RESET)
    slot.close()


class AnyDriver(RuleBasedStateMachine):
    """Any accesses in any order, a backend that comes and goes: nothing raises, what it gets is sound."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = Slot(queue_size=256)

    @rule(offset=st.integers(0, 63) | st.integers(0, BAR_SIZE - 8), size=st.sampled_from([1, 2, 4, 8]))
    def read(self, offset: int, size: int) -> None:
        assert 0 <= self.slot.card.read(offset, size) < 1 << 8 * size

    @rule(
        offset=st.integers(0, 63) | st.integers(0, BAR_SIZE - 8),
        size=st.sampled_from([1, 2, 4, 8]),
        value=st.integers(0, 3) | st.integers(0, (1 << 64) - 1),
    )
    def write(self, offset: int, size: int, value: int) -> None:
        self.slot.card.write(offset, size, value & (1 << 8 * size) - 1)

    @rule(offset=st.integers(0, 255), size=st.sampled_from([1, 2, 4]), value=st.integers(0, (1 << 32) - 1))
    def configure(self, offset: int, size: int, value: int) -> None:
        at = self.slot.at + offset // size * size
        self.slot.ecam.write(at, size, value & (1 << 8 * size) - 1)
        self.slot.ecam.read(at, size)

    @rule()
    def drive(self) -> None:
        card = self.slot.card
        for offset, size, value in (
            (virtio.VIRTIO_PCI_COMMON_STATUS, 1, 0),
            (virtio.VIRTIO_PCI_COMMON_STATUS, 1, 3),
            (virtio.VIRTIO_PCI_COMMON_GFSELECT, 4, 1),
            (virtio.VIRTIO_PCI_COMMON_GF, 4, 1),
            (virtio.VIRTIO_PCI_COMMON_STATUS, 1, 11),
            (virtio.VIRTIO_PCI_COMMON_Q_DESCLO, 8, 0x1000),
            (virtio.VIRTIO_PCI_COMMON_Q_AVAILLO, 8, 0x2000),
            (virtio.VIRTIO_PCI_COMMON_Q_USEDLO, 8, 0x3000),
            (virtio.VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1),
            (virtio.VIRTIO_PCI_COMMON_STATUS, 1, 15),
        ):
            card.write(offset, size, value)
        assert bool(self.slot.backend.running) != bool(self.slot.backend.broken)

    @rule(broken=st.sampled_from(["", "gone"]))
    def break_backend(self, broken: str) -> None:
        self.slot.backend.broken = broken

    @rule(what=st.sampled_from(["suspend", "resume", "config_changed", "reset"]))
    def host(self, what: str) -> None:
        getattr(self.slot.device, what)()

    @invariant()
    def what_runs_was_asked_for(self) -> None:
        if self.slot.backend.running:
            assert self.slot.device.status.DRIVER_OK

    def teardown(self) -> None:
        self.slot.backend.broken = ""
        self.slot.close()


TestAnyDriver = AnyDriver.TestCase
TestAnyDriver.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
