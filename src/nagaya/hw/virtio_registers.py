"""The registers that both transports of virtio have, each at its own offsets: features, status, a queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from nagaya.abi.registers import Register
from nagaya.abi.virtio import Status
from nagaya.hw.registers import RegisterAt, RegisterBlock, RegisterMap
from nagaya.hw.virtio import Queue, VirtioDevice


@dataclass(frozen=True, slots=True)
class Names:
    """Which register of a transport is which."""

    device_features_select: RegisterAt[Register]
    device_features: RegisterAt[Register]
    driver_features_select: RegisterAt[Register]
    driver_features: RegisterAt[Register]
    status: RegisterAt[Status]
    config_generation: RegisterAt[Register]
    queue_select: RegisterAt[Register]
    queue_size: RegisterAt[Register]
    queue_enable: RegisterAt[Register]
    queue_desc: RegisterAt[Register]
    queue_driver: RegisterAt[Register]
    queue_device: RegisterAt[Register]

    def all(self) -> tuple[RegisterAt[Any], ...]:
        """Every register."""
        return tuple(getattr(self, field.name) for field in fields(self))


class DriverRegisters(RegisterBlock):
    """Between a driver's accesses and the device: what it selects it finds behind the selector."""

    def __init__(
        self,
        registers: RegisterMap,
        names: Names,
        device: VirtioDevice,
        *,
        show: Callable[[Queue | None], None] = lambda queue: None,
        take: Callable[[Queue], None] = lambda queue: None,
    ) -> None:
        """`show(queue)` and `take(queue)` carry what only this transport has between registers and queue.

        Call `show_all` before a driver comes.
        """
        super().__init__(registers)
        self._names = names
        self._device = device
        self._show = show
        self._take = take
        self.on_write(names.device_features_select, lambda before: self._show_features())
        self.on_write(names.driver_features_select, lambda before: self._show_features())
        self.on_write(names.driver_features, lambda before: self._take_features())
        self.on_write(names.status, self._take_status)
        self.on_read(names.status, self._show_status)
        self.on_read(names.config_generation, self._show_generation)
        self.on_write(names.queue_select, lambda before: self.show_queue())
        for one in (names.queue_size, names.queue_desc, names.queue_driver, names.queue_device):
            self.on_write(one, lambda before: self.take_queue())
        self.on_write(names.queue_enable, lambda before: self._enable())

    @property
    def selected(self) -> Queue | None:
        """The queue that the driver has selected, if there is one."""
        return self._device.queue(self[self._names.queue_select])

    def show_all(self) -> None:
        """Have everything in the registers as the device has it."""
        self._show_features()
        self._show_status()
        self._show_generation()
        self.show_queue()

    def show_queue(self) -> None:
        """Have the selected queue in its registers; zeroes if there is no such queue (4.1.4.3.1, 4.2.2.1)."""
        names, queue = self._names, self.selected
        self[names.queue_size] = queue.size if queue else 0
        self[names.queue_enable] = int(queue.enabled) if queue else 0
        self[names.queue_desc] = queue.desc if queue else 0
        self[names.queue_driver] = queue.driver if queue else 0
        self[names.queue_device] = queue.device if queue else 0
        self._show(queue)

    def take_queue(self) -> None:
        """The driver has written to a register of the selected queue: nothing changes once it is enabled."""
        names, queue = self._names, self.selected
        if queue is not None and not queue.enabled:
            queue.size = int(self[names.queue_size])
            queue.desc = int(self[names.queue_desc])
            queue.driver = int(self[names.queue_driver])
            queue.device = int(self[names.queue_device])
            self._take(queue)
        self.show_queue()

    def _enable(self) -> None:
        queue = self.selected
        if queue is not None and self[self._names.queue_enable] == 1:
            self._device.enable(queue)
        self.show_queue()

    def _show_features(self) -> None:
        names, device = self._names, self._device
        self[names.device_features] = device.device_features(self[names.device_features_select])
        word = self[names.driver_features_select]
        self[names.driver_features] = device.driver_features >> 32 * word & 0xFFFFFFFF if word < 2 else 0

    def _take_features(self) -> None:
        self._device.set_driver_features(
            self[self._names.driver_features_select], self[self._names.driver_features]
        )
        self._show_features()

    def _show_status(self) -> None:
        self[self._names.status] = self._device.status

    def _take_status(self, before: Status) -> None:
        value = self[self._names.status]
        self._device.set_status(value)
        if value == 0:
            self.reset()
        self.show_all()

    def _show_generation(self) -> None:
        self[self._names.config_generation] = self._device.config_generation
