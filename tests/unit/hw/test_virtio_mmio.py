"""The MMIO transport: registers at their places, doorbells by queue, an interrupt status on the safe side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.abi import virtio
from nagaya.abi.virtio import Status
from nagaya.errors import ResourceError
from nagaya.hw.virtio import KINDS, Ring
from nagaya.hw.virtio_mmio import SIZE, VirtioMmio
from nagaya.hw.wires import RamRegion
from nagaya.testing.wires import FakeDoorbells, FakePulse

BASE = 0xFEB00000
VERSION_1 = 1 << virtio.VIRTIO_F_VERSION_1


class FakeRam:
    """A MiB of addresses."""

    @property
    def regions(self) -> Sequence[RamRegion]:
        return (RamRegion(0, 1 << 20, -1, 0, 0),)

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError


class FakeBackend:
    """Remembers what it serves."""

    def __init__(self) -> None:
        self.features = VERSION_1
        self.queues = 2
        self.running: list[Ring] = []

    def start(self, features: int, rings: Sequence[Ring]) -> None:
        assert not self.running
        self.running = list(rings)

    def stop(self) -> Sequence[int]:
        rings, self.running = self.running, []
        return [0 for _ in rings]

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(range(offset, offset + size))

    def write_config(self, offset: int, content: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.running = []


class Page:
    """A disk at BASE, and accesses of 32 bits."""

    def __init__(self) -> None:
        self.backend, self.doorbells, self.pulse = FakeBackend(), FakeDoorbells(), FakePulse()
        self.card = VirtioMmio(KINDS["blk"], self.backend, FakeRam(), self.pulse, self.doorbells, base=BASE)

    def __getitem__(self, offset: int) -> int:
        return self.card.read(offset, 4)

    def __setitem__(self, offset: int, value: int) -> None:
        self.card.write(offset, 4, value)

    def drive(self) -> None:
        self[virtio.VIRTIO_MMIO_STATUS] = 0
        self[virtio.VIRTIO_MMIO_STATUS] = 3
        self[virtio.VIRTIO_MMIO_DRIVER_FEATURES_SEL] = 1
        self[virtio.VIRTIO_MMIO_DRIVER_FEATURES] = 1
        self[virtio.VIRTIO_MMIO_STATUS] = 11
        for queue in range(2):
            self[virtio.VIRTIO_MMIO_QUEUE_SEL] = queue
            self[virtio.VIRTIO_MMIO_QUEUE_NUM] = 16
            for area, offset in enumerate((0x80, 0x90, 0xA0)):
                self[offset] = 0x10000 * queue + 0x1000 * (area + 1)
                self[offset + 4] = 0
            self[virtio.VIRTIO_MMIO_QUEUE_READY] = 1
        self[virtio.VIRTIO_MMIO_STATUS] = 15

    def close(self) -> None:
        self.card.close()
        assert self.doorbells.bound == {} and self.pulse.fd == -1


@pytest.fixture
def page() -> Iterator[Page]:
    one = Page()
    yield one
    one.close()


def test_a_driver_knows_it(page: Page) -> None:
    assert [page[offset] for offset in (0, 4, 8, 12)] == [0x74726976, 2, virtio.VIRTIO_ID_BLOCK, 0x1AF4]
    assert page[virtio.VIRTIO_MMIO_QUEUE_NUM_MAX] == 256
    page[virtio.VIRTIO_MMIO_QUEUE_SEL] = 2
    assert page[virtio.VIRTIO_MMIO_QUEUE_NUM_MAX] == 0
    assert page[virtio.VIRTIO_MMIO_CONFIG + 4] == 0x07060504


def test_the_backend_gets_the_rings(page: Page) -> None:
    page.drive()
    first, second = page.backend.running
    assert (first.desc, first.driver, first.device, first.size) == (0x1000, 0x2000, 0x3000, 16)
    assert second.desc == 0x11000 and first.call == second.call == page.pulse.fd
    notify = BASE + virtio.VIRTIO_MMIO_QUEUE_NOTIFY
    assert page.doorbells.bound == {(notify, 4, 0): first.kick, (notify, 4, 1): second.kick}
    page[virtio.VIRTIO_MMIO_STATUS] = 0
    assert not page.backend.running and page[virtio.VIRTIO_MMIO_STATUS] == 0


def test_a_kick_that_no_doorbell_takes_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ResourceError("none left")

    monkeypatch.setattr(FakeDoorbells, "bind", refuse)
    page = Page()
    page.drive()
    page[virtio.VIRTIO_MMIO_QUEUE_NOTIFY] = 1
    page[virtio.VIRTIO_MMIO_QUEUE_NOTIFY] = 0xFFFFFFFF
    assert os.eventfd_read(page.backend.running[1].kick) == 1
    page.close()


def test_interrupt_status_says_a_queue_and_perhaps_the_configuration(page: Page) -> None:
    assert page[virtio.VIRTIO_MMIO_INTERRUPT_STATUS] == 0
    page.drive()
    assert page[virtio.VIRTIO_MMIO_INTERRUPT_STATUS] == virtio.VIRTIO_ISR_QUEUE
    page.card.device.config_changed()
    assert os.eventfd_read(page.pulse.fd) == 1
    assert page[virtio.VIRTIO_MMIO_INTERRUPT_STATUS] == virtio.VIRTIO_ISR_QUEUE | virtio.VIRTIO_ISR_CONFIG
    assert page[virtio.VIRTIO_MMIO_CONFIG_GENERATION] == 1
    page[virtio.VIRTIO_MMIO_INTERRUPT_ACK] = virtio.VIRTIO_ISR_CONFIG
    assert page[virtio.VIRTIO_MMIO_INTERRUPT_STATUS] == virtio.VIRTIO_ISR_QUEUE
    page.card.reset()
    assert page[virtio.VIRTIO_MMIO_INTERRUPT_STATUS] == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFF) | st.integers(0, SIZE - 8),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, 15) | st.integers(0, (1 << 64) - 1),
        ),
        max_size=60,
    )
)
def test_any_accesses_do_no_harm(accesses: list[tuple[int, int, int]]) -> None:
    page = Page()
    for offset, size, value in accesses:
        page.card.write(offset, size, value & (1 << 8 * size) - 1)
        assert 0 <= page.card.read(offset, size) < 1 << 8 * size
    if page.backend.running:
        assert Status(page[virtio.VIRTIO_MMIO_STATUS]).DRIVER_OK
    page.drive()
    assert len(page.backend.running) == 2
    page.close()
