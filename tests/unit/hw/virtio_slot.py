"""A virtio device over PCI in a slot of its own, and the driver's accesses to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from nagaya.abi import pci, virtio
from nagaya.abi.virtio import Status
from nagaya.errors import UnavailableError
from nagaya.hw import layout
from nagaya.hw.bus import Bus
from nagaya.hw.pci_host import Ecam, PciHost
from nagaya.hw.virtio import KINDS, Ring
from nagaya.hw.virtio_pci import VirtioPci
from nagaya.hw.wires import RamRegion
from nagaya.testing.wires import FakeDoorbells, FakeInterrupts

MIB = 1 << 20
VERSION_1 = 1 << virtio.VIRTIO_F_VERSION_1
EVENT_IDX = 1 << virtio.VIRTIO_RING_F_EVENT_IDX
NOTIFICATION_DATA = 1 << 38
FLUSH, CONFIG_WCE = 1 << 9, 1 << virtio.VIRTIO_BLK_F_CONFIG_WCE
REGIONS = (RamRegion(0, MIB, -1, 0, 0), RamRegion(4 << 30, MIB, -1, MIB, MIB))


class FakeRam:
    """Addresses without memory: devices only look where RAM is."""

    @property
    def regions(self) -> Sequence[RamRegion]:
        return REGIONS

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        raise NotImplementedError


@dataclass
class FakeBackend:
    """Remembers what it serves, and insists on what the device promises it."""

    features: int = VERSION_1 | EVENT_IDX | NOTIFICATION_DATA | FLUSH | CONFIG_WCE
    queues: int = 2
    config: bytearray = field(default_factory=lambda: bytearray(range(60)))
    running: list[Ring] = field(default_factory=list)
    agreed: int = 0
    starts: int = 0
    broken: str = ""

    def start(self, features: int, rings: Sequence[Ring]) -> None:
        if self.broken:
            raise UnavailableError(self.broken)
        assert not self.running and rings
        assert features & VERSION_1 and not features & ~self.features
        for ring in rings:
            assert ring.size in (1, 2, 4, 8, 16, 32, 64, 128, 256)
            areas = (
                (ring.desc, 16 * ring.size),
                (ring.driver, 6 + 2 * ring.size),
                (ring.device, 6 + 8 * ring.size),
            )
            for address, size in areas:
                assert any(
                    one.address <= address and address + size <= one.address + one.size for one in REGIONS
                )
            os.fstat(ring.kick), os.fstat(ring.call)
        self.running, self.agreed = list(rings), features
        self.starts += 1

    def stop(self) -> Sequence[int]:
        assert self.running
        count = len(self.running)
        self.running = []
        if self.broken:
            raise UnavailableError(self.broken)
        return [7] * count

    def read_config(self, offset: int, size: int) -> bytes:
        if self.broken:
            raise UnavailableError(self.broken)
        return bytes(self.config[offset : offset + size])

    def write_config(self, offset: int, content: bytes) -> None:
        if self.broken:
            raise UnavailableError(self.broken)
        self.config[offset : offset + len(content)] = content

    def close(self) -> None:
        self.running = []


class Slot:
    """A virtio disk in a slot, its BAR decoding, and accesses by name."""

    def __init__(self, backend: FakeBackend | None = None, *, queue_size: int = 256) -> None:
        self.backend = backend or FakeBackend()
        self.interrupts, self.doorbells = FakeInterrupts(), FakeDoorbells()
        self.memory = Bus("memory", 1 << 52)
        self.host = PciHost(self.memory, [(layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE)])
        self.card = VirtioPci(
            KINDS["blk"], self.backend, FakeRam(), self.interrupts, self.doorbells, queue_size=queue_size
        )
        self.device = self.card.device
        number = self.host.add(self.card.function)
        self.host.power_on()
        self.ecam, self.at = Ecam(self.host), number << 15
        self.ecam.write(self.at + pci.PCI_COMMAND, 2, pci.Command.of(MEMORY=1, BUS_MASTER=1))

    def close(self) -> None:
        self.card.close()
        self.host.close()
        assert not self.doorbells.bound
        assert all(one.fd == -1 for one in self.interrupts.vectors)

    @property
    def base(self) -> int:
        base = self.card.function.bars[0].base
        assert base is not None
        return base

    def read(self, offset: int, size: int) -> int:
        return self.memory.read(self.base + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.memory.write(self.base + offset, size, value)

    @property
    def status(self) -> Status:
        return Status(self.read(virtio.VIRTIO_PCI_COMMON_STATUS, 1))

    @status.setter
    def status(self, value: int) -> None:
        self.write(virtio.VIRTIO_PCI_COMMON_STATUS, 1, value)

    def accept(self, features: int) -> None:
        for word in range(2):
            self.write(virtio.VIRTIO_PCI_COMMON_GFSELECT, 4, word)
            self.write(virtio.VIRTIO_PCI_COMMON_GF, 4, features >> 32 * word & 0xFFFFFFFF)

    def offered(self) -> int:
        offered = 0
        for word in range(4):
            self.write(virtio.VIRTIO_PCI_COMMON_DFSELECT, 4, word)
            offered |= self.read(virtio.VIRTIO_PCI_COMMON_DF, 4) << 32 * word
        return offered

    def queue(self, index: int, *, size: int = 16, at: int = 0x1000, vector: int = 0xFFFF) -> None:
        self.write(virtio.VIRTIO_PCI_COMMON_Q_SELECT, 2, index)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_SIZE, 2, size)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_DESCLO, 8, at)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_AVAILLO, 8, at + 0x1000)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_USEDLO, 4, at + 0x2000)  # by halves, as 32-bit drivers do
        self.write(virtio.VIRTIO_PCI_COMMON_Q_USEDLO + 4, 4, at + 0x2000 >> 32)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_MSIX, 2, vector)
        self.write(virtio.VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1)

    def agree(self, features: int = VERSION_1) -> None:
        self.status = 0
        self.status = 1
        self.status = 3
        self.accept(features)
        self.status = 11

    def drive(self, features: int = VERSION_1) -> None:
        self.agree(features)
        self.queue(0)
        self.queue(1, at=(4 << 30) + 0x1000)
        self.status = 15
