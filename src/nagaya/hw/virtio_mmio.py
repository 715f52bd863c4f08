"""The MMIO transport of virtio, version 2: a page of registers and one interrupt line (virtio 1.3, 4.2).

For the smallest machines, which have no PCI. A queue's doorbell is an ioeventfd that matches its number. All
queues share the line, whose pulses come from the backend by irqfd; which queue it was is not known here, so
the interrupt status always says "a queue", and a driver looks at its rings.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from nagaya.abi import virtio
from nagaya.abi.registers import Register
from nagaya.errors import ResourceError
from nagaya.hw.registers import RegisterAt, RegisterMap
from nagaya.hw.virtio import Backend, Kind, Queue, VirtioDevice
from nagaya.hw.virtio_registers import DriverRegisters, Names
from nagaya.hw.wires import Doorbells, Pulse, Ram

log = logging.getLogger(__name__)

SIZE: Final = 4096
_32 = 0xFFFFFFFF
_64 = (1 << 64) - 1


def _plain(name: str, offset: int, size: int = 4, writable: int = 0, reset: int = 0) -> RegisterAt[Register]:
    """A register without fields."""
    return RegisterAt(name, offset, size, Register, reset, writable)


NAMES: Final = Names(
    device_features_select=_plain("device feature select", virtio.VIRTIO_MMIO_DEVICE_FEATURES_SEL, 4, _32),
    device_features=_plain("device features", virtio.VIRTIO_MMIO_DEVICE_FEATURES),
    driver_features_select=_plain("driver feature select", virtio.VIRTIO_MMIO_DRIVER_FEATURES_SEL, 4, _32),
    driver_features=_plain("driver features", virtio.VIRTIO_MMIO_DRIVER_FEATURES, 4, _32),
    status=RegisterAt("status", virtio.VIRTIO_MMIO_STATUS, 4, virtio.Status, writable=0xFF),
    config_generation=_plain("config generation", virtio.VIRTIO_MMIO_CONFIG_GENERATION),
    queue_select=_plain("queue select", virtio.VIRTIO_MMIO_QUEUE_SEL, 4, _32),
    queue_size=_plain("queue size", virtio.VIRTIO_MMIO_QUEUE_NUM, 4, _32),
    queue_enable=_plain("queue ready", virtio.VIRTIO_MMIO_QUEUE_READY, 4, _32),
    queue_desc=_plain("queue descriptors", virtio.VIRTIO_MMIO_QUEUE_DESC_LOW, 8, _64),
    queue_driver=_plain("queue driver area", virtio.VIRTIO_MMIO_QUEUE_AVAIL_LOW, 8, _64),
    queue_device=_plain("queue device area", virtio.VIRTIO_MMIO_QUEUE_USED_LOW, 8, _64),
)
DEVICE_ID: Final = _plain("device id", virtio.VIRTIO_MMIO_DEVICE_ID)
QUEUE_SIZE_MAX: Final = _plain("queue size max", virtio.VIRTIO_MMIO_QUEUE_NUM_MAX)
QUEUE_NOTIFY: Final = _plain("queue notify", virtio.VIRTIO_MMIO_QUEUE_NOTIFY, 4, _32)
INTERRUPT_STATUS: Final = _plain("interrupt status", virtio.VIRTIO_MMIO_INTERRUPT_STATUS)
INTERRUPT_ACK: Final = _plain("interrupt acknowledge", virtio.VIRTIO_MMIO_INTERRUPT_ACK, 4, _32)
_MAP: Final = RegisterMap(
    virtio.VIRTIO_MMIO_CONFIG,
    (
        _plain("magic", virtio.VIRTIO_MMIO_MAGIC_VALUE, 4, 0, virtio.VIRTIO_MMIO_MAGIC),
        _plain("version", virtio.VIRTIO_MMIO_VERSION, 4, 0, 2),
        _plain("vendor", virtio.VIRTIO_MMIO_VENDOR_ID, 4, 0, virtio.VIRTIO_PCI_VENDOR),
        *NAMES.all(),
        DEVICE_ID,
        QUEUE_SIZE_MAX,
        QUEUE_NOTIFY,
        INTERRUPT_STATUS,
        INTERRUPT_ACK,
    ),
)


class VirtioMmio:
    """A virtio device in a page of memory at `base`; attach it to the bus there. Implements `Registers`."""

    def __init__(
        self,
        kind: Kind,
        backend: Backend,
        ram: Ram,
        pulse: Pulse,
        doorbells: Doorbells,
        *,
        base: int,
        queue_size: int = 256,
    ) -> None:
        """`pulse` is the interrupt line, which the device owns from now on."""
        self._pulse = pulse
        self._doorbells = doorbells
        self._base = base
        self._config_changed = False
        self._bells: list[Queue] = []
        self.device = VirtioDevice(
            kind,
            backend,
            ram,
            queue_size=queue_size,
            call=lambda queue: pulse.fd,
            config_interrupt=self._interrupt_config,
        )
        self._registers = registers = DriverRegisters(_MAP, NAMES, self.device, show=self._show_queue)
        registers.preset(DEVICE_ID, kind.id)
        registers.on_write(QUEUE_NOTIFY, lambda before: self.device.notify(registers[QUEUE_NOTIFY]))
        registers.on_read(INTERRUPT_STATUS, self._show_interrupt)
        registers.on_write(INTERRUPT_ACK, lambda before: self._acknowledge())
        registers.show_all()
        self._bind()

    def close(self) -> None:
        """Give back what it took from the host."""
        for queue in self._bells:
            self._doorbells.unbind(queue.kick, self._base + QUEUE_NOTIFY.offset, 4, queue.index)
        self._bells.clear()
        self.device.close()
        self._pulse.close()

    def reset(self) -> None:
        """As at power-on."""
        self.device.reset()
        self._config_changed = False
        self._registers.reset()
        self._registers.show_all()

    def read(self, offset: int, size: int) -> int:
        """Registers, and configuration space behind them."""
        if offset < virtio.VIRTIO_MMIO_CONFIG:
            return self._registers.read(offset, size)
        return self.device.read_config(offset - virtio.VIRTIO_MMIO_CONFIG, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Registers, and configuration space behind them."""
        if offset < virtio.VIRTIO_MMIO_CONFIG:
            self._registers.write(offset, size, value)
        else:
            self.device.write_config(offset - virtio.VIRTIO_MMIO_CONFIG, size, value)

    def _bind(self) -> None:
        for queue in self.device.queues:
            try:
                self._doorbells.bind(queue.kick, self._base + QUEUE_NOTIFY.offset, 4, queue.index)
            except ResourceError as error:  # its kicks take the slow way, `write`
                log.warning("virtio-%s, queue %d: %s", self.device.kind.name, queue.index, error.message)
                continue
            self._bells.append(queue)

    def _show_queue(self, queue: Queue | None) -> None:
        self._registers[QUEUE_SIZE_MAX] = self.device.queue_size if queue else 0

    def _interrupt_config(self) -> None:
        self._config_changed = True
        os.eventfd_write(self._pulse.fd, 1)

    def _show_interrupt(self) -> None:
        queues = virtio.VIRTIO_ISR_QUEUE if self.device.status.DRIVER_OK else 0
        config = virtio.VIRTIO_ISR_CONFIG if self._config_changed else 0
        self._registers[INTERRUPT_STATUS] = queues | config

    def _acknowledge(self) -> None:
        if self._registers[INTERRUPT_ACK] & virtio.VIRTIO_ISR_CONFIG:
            self._config_changed = False
