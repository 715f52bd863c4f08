"""The PCI transport of virtio, without the legacy of before 1.0 (virtio 1.3, 4.1).

BAR 0 holds the four structures, a page each; BAR 1 the MSI-X table. A queue's doorbell is an ioeventfd, its
interrupt an MSI-X vector's irqfd, so neither comes by here. There is no INTx: the machine routes none.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from nagaya.abi import pci, virtio
from nagaya.abi.registers import Register
from nagaya.errors import ResourceError
from nagaya.hw.capabilities import Capability, capability_map
from nagaya.hw.pci import Bar, Identity, PciFunction
from nagaya.hw.registers import RegisterAt, RegisterMap
from nagaya.hw.virtio import Backend, Kind, Queue, VirtioDevice
from nagaya.hw.virtio_registers import DriverRegisters, Names
from nagaya.hw.wires import Doorbells, Interrupts, Ram

log = logging.getLogger(__name__)

PAGE: Final = 4096
COMMON, ISR, CONFIG, NOTIFY = 0, PAGE, 2 * PAGE, 3 * PAGE
BAR_SIZE: Final = 4 * PAGE
NOTIFY_MULTIPLIER: Final = 4
MSIX_BAR: Final = 1

_32, _16, _8 = 0xFFFFFFFF, 0xFFFF, 0xFF
_64 = (1 << 64) - 1


def _plain(name: str, offset: int, size: int, writable: int = 0, reset: int = 0) -> RegisterAt[Register]:
    """A register without fields."""
    return RegisterAt(name, offset, size, Register, reset, writable)


NAMES: Final = Names(
    device_features_select=_plain("device feature select", virtio.VIRTIO_PCI_COMMON_DFSELECT, 4, _32),
    device_features=_plain("device features", virtio.VIRTIO_PCI_COMMON_DF, 4),
    driver_features_select=_plain("driver feature select", virtio.VIRTIO_PCI_COMMON_GFSELECT, 4, _32),
    driver_features=_plain("driver features", virtio.VIRTIO_PCI_COMMON_GF, 4, _32),
    status=RegisterAt("status", virtio.VIRTIO_PCI_COMMON_STATUS, 1, virtio.Status, writable=_8),
    config_generation=_plain("config generation", virtio.VIRTIO_PCI_COMMON_CFGGENERATION, 1),
    queue_select=_plain("queue select", virtio.VIRTIO_PCI_COMMON_Q_SELECT, 2, _16),
    queue_size=_plain("queue size", virtio.VIRTIO_PCI_COMMON_Q_SIZE, 2, _16),
    queue_enable=_plain("queue enable", virtio.VIRTIO_PCI_COMMON_Q_ENABLE, 2, _16),
    queue_desc=_plain("queue descriptors", virtio.VIRTIO_PCI_COMMON_Q_DESCLO, 8, _64),
    queue_driver=_plain("queue driver area", virtio.VIRTIO_PCI_COMMON_Q_AVAILLO, 8, _64),
    queue_device=_plain("queue device area", virtio.VIRTIO_PCI_COMMON_Q_USEDLO, 8, _64),
)
CONFIG_VECTOR: Final = _plain(
    "config vector", virtio.VIRTIO_PCI_COMMON_MSIX, 2, _16, virtio.VIRTIO_MSI_NO_VECTOR
)
QUEUES: Final = _plain("queues", virtio.VIRTIO_PCI_COMMON_NUMQ, 2)
QUEUE_VECTOR: Final = _plain("queue vector", virtio.VIRTIO_PCI_COMMON_Q_MSIX, 2, _16)
QUEUE_NOTIFY: Final = _plain("queue notify offset", virtio.VIRTIO_PCI_COMMON_Q_NOFF, 2)
_COMMON_MAP: Final = RegisterMap(
    virtio.VIRTIO_PCI_COMMON_SIZE,
    (*NAMES.all(), CONFIG_VECTOR, QUEUES, QUEUE_VECTOR, QUEUE_NOTIFY),
)

# VIRTIO_PCI_CAP_PCI_CFG: access to the BAR through configuration space (4.1.4.9)
WINDOW_BAR: Final = _plain("window BAR", virtio.VIRTIO_PCI_CAP_BAR, 1, _8)
WINDOW_OFFSET: Final = _plain("window offset", virtio.VIRTIO_PCI_CAP_OFFSET, 4, _32)
WINDOW_LENGTH: Final = _plain("window length", virtio.VIRTIO_PCI_CAP_LENGTH, 4, _32)
WINDOW_DATA: Final = _plain("window data", virtio.VIRTIO_PCI_CFG_DATA, 4, _32)
_WINDOW_MAP: Final = capability_map(
    virtio.VIRTIO_PCI_CFG_DATA + 4,
    (
        _plain("length", virtio.VIRTIO_PCI_CAP_LEN, 1, 0, virtio.VIRTIO_PCI_CFG_DATA + 4),
        _plain("type", virtio.VIRTIO_PCI_CAP_CFG_TYPE, 1, 0, virtio.VIRTIO_PCI_CAP_PCI_CFG),
        WINDOW_BAR,
        WINDOW_OFFSET,
        WINDOW_LENGTH,
        WINDOW_DATA,
    ),
)


class VirtioPci:
    """A virtio device as a PCI function: put `function` into a slot. Implements `Registers` for its BAR 0."""

    def __init__(
        self,
        kind: Kind,
        backend: Backend,
        ram: Ram,
        interrupts: Interrupts,
        doorbells: Doorbells,
        *,
        queue_size: int = 256,
    ) -> None:
        """Raises `ResourceError` when eventfds or interrupt routes run out."""
        self._doorbells = doorbells
        self._bells: list[tuple[int, int]] = []  # (eventfd, address)
        self._isr = 0
        self._silence = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # for queues without a vector
        self.device = VirtioDevice(
            kind,
            backend,
            ram,
            queue_size=queue_size,
            call=self._call,
            config_interrupt=self._interrupt_config,
        )
        self._common = DriverRegisters(
            _COMMON_MAP, NAMES, self.device, show=self._show_queue, take=self._take_queue
        )
        self._common.preset(QUEUES, len(self.device.queues))
        self._common.on_write(CONFIG_VECTOR, lambda before: self._take_config_vector())
        self._common.on_write(QUEUE_VECTOR, lambda before: self._common.take_queue())
        self._common.show_all()
        self._window = self._make_window()
        self.function = PciFunction(
            Identity(
                virtio.VIRTIO_PCI_VENDOR,
                virtio.VIRTIO_PCI_DEVICE_BASE + kind.id,
                kind.pci_class,
                virtio.VIRTIO_PCI_REVISION,
                virtio.VIRTIO_PCI_VENDOR,
                virtio.VIRTIO_PCI_DEVICE_BASE + kind.id,
            ),
            bars={0: Bar(BAR_SIZE, self, moved=self._moved)},
            capabilities=(*_structures(kind), self._window),
            interrupts=interrupts,
            msix_vectors=len(self.device.queues) + 1,
            msix_bar=MSIX_BAR,
            on_reset=self.reset,
        )

    def close(self) -> None:
        """Give back what it took from the host. It may still be in its slot if no vCPU runs any more."""
        self._unbind()
        self.device.close()
        self.function.close()
        if self._silence >= 0:
            os.close(self._silence)
            self._silence = -1

    def reset(self) -> None:
        """As at power-on."""
        self.device.reset()
        self._isr = 0
        self._common.reset()
        self._common.show_all()

    def read(self, offset: int, size: int) -> int:
        """BAR 0."""
        if offset < ISR:
            return self._common.read(offset, size)
        if offset < CONFIG:
            if offset > ISR:
                return 0
            isr, self._isr = self._isr, 0  # reading clears (4.1.4.5)
            return isr
        if offset < NOTIFY:
            return self.device.read_config(offset - CONFIG, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """BAR 0."""
        if offset < ISR:
            self._common.write(offset, size, value)
        elif CONFIG <= offset < NOTIFY:
            self.device.write_config(offset - CONFIG, size, value)
        elif offset >= NOTIFY:
            self.device.notify((offset - NOTIFY) // NOTIFY_MULTIPLIER)

    def _moved(self, before: int | None, now: int | None) -> None:
        """BAR 0 is elsewhere, and the doorbells with it."""
        self._unbind()
        if now is None:
            return
        for queue in self.device.queues:
            address = now + NOTIFY + NOTIFY_MULTIPLIER * queue.index
            try:
                self._doorbells.bind(queue.kick, address, 0)
            except ResourceError as error:  # its kicks take the slow way, `write`
                log.warning("virtio-%s, queue %d: %s", self.device.kind.name, queue.index, error.message)
                continue
            self._bells.append((queue.kick, address))

    def _unbind(self) -> None:
        for fd, address in self._bells:
            self._doorbells.unbind(fd, address, 0)
        self._bells.clear()

    def _call(self, queue: Queue) -> int:
        vectors = self.function.msix.vectors if self.function.msix else ()
        return vectors[queue.vector].fd if queue.vector < len(vectors) else self._silence

    def _interrupt_config(self) -> None:
        self._isr |= virtio.VIRTIO_ISR_CONFIG
        vector = self._common[CONFIG_VECTOR]
        if self.function.msix and vector < len(self.function.msix.vectors):
            self.function.msix.signal(vector)

    def _vector(self, wanted: int) -> int:
        """What a driver reads back: VIRTIO_MSI_NO_VECTOR if there is no such vector (4.1.5.1.2)."""
        return wanted if wanted <= len(self.device.queues) else virtio.VIRTIO_MSI_NO_VECTOR

    def _take_config_vector(self) -> None:
        self._common[CONFIG_VECTOR] = self._vector(self._common[CONFIG_VECTOR])

    def _take_queue(self, queue: Queue) -> None:
        queue.vector = self._vector(int(self._common[QUEUE_VECTOR]))

    def _show_queue(self, queue: Queue | None) -> None:
        self._common[QUEUE_VECTOR] = queue.vector if queue else virtio.VIRTIO_MSI_NO_VECTOR
        self._common[QUEUE_NOTIFY] = queue.index if queue else 0

    def _make_window(self) -> Capability:
        window = Capability(pci.PCI_CAP_ID_VNDR, _WINDOW_MAP)
        window.on_read(WINDOW_DATA, self._read_window)
        window.on_write(WINDOW_DATA, lambda before: self._write_window())
        return window

    def _window_target(self) -> tuple[int, int] | None:
        """(offset, size) in BAR 0 if what the driver asks for is allowed (4.1.4.9.1)."""
        offset, size = self._window[WINDOW_OFFSET], self._window[WINDOW_LENGTH]
        allowed = size in (1, 2, 4) and not offset % size and offset + size <= BAR_SIZE
        return (offset, size) if allowed and self._window[WINDOW_BAR] == 0 else None

    def _read_window(self) -> None:
        target = self._window_target()
        self._window[WINDOW_DATA] = self.read(*target) & (1 << 8 * target[1]) - 1 if target else 0

    def _write_window(self) -> None:
        target = self._window_target()
        if target:
            self.write(*target, self._window[WINDOW_DATA] & (1 << 8 * target[1]) - 1)


def _structures(kind: Kind) -> tuple[Capability, ...]:
    """Where in BAR 0 a driver finds the structures (4.1.4)."""
    found = [
        _structure(virtio.VIRTIO_PCI_CAP_COMMON_CFG, COMMON, virtio.VIRTIO_PCI_COMMON_SIZE),
        _structure(virtio.VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, PAGE, NOTIFY_MULTIPLIER.to_bytes(4, "little")),
        _structure(virtio.VIRTIO_PCI_CAP_ISR_CFG, ISR, 1),
    ]
    if kind.config_size:
        found.append(_structure(virtio.VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG, kind.config_size))
    return tuple(found)


def _structure(kind: int, offset: int, length: int, more: bytes = b"") -> Capability:
    body = bytes((virtio.VIRTIO_PCI_CAP_SIZE + len(more), kind, 0, 0, 0, 0))
    body += offset.to_bytes(4, "little") + length.to_bytes(4, "little") + more
    return Capability.fixed(pci.PCI_CAP_ID_VNDR, body)
