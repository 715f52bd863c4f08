"""Interrupts and doorbells of the kernel's irqchip: implements the wires `Interrupts` and `Doorbells`.

A vector is an eventfd and a GSI. The GSI's route says which message (address, payload) an interrupt is, and
an irqfd joins eventfd and GSI inside the kernel. Masked means that there is no irqfd: the eventfd counts, and
KVM delivers what it finds there when the irqfd comes back (virt/kvm/eventfd.c, kvm_irqfd_assign).
"""

from __future__ import annotations

import functools
import os
import select

from nagaya.abi import kvm
from nagaya.errors import ConflictError, ResourceError, UsageError
from nagaya.hw import layout
from nagaya.kvm.system import array, ioctl
from nagaya.kvm.vm import Vm

_PIC_PINS = 8


class KvmInterrupts:
    """The lines and vectors of one VM."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        most = vm.system.check_extension(kvm.KVM_CAP_IRQ_ROUTING)
        self._unused = iter(range(layout.FIRST_MSI_GSI, most))
        self._returned: list[int] = []
        self._fixed = _irqchip_routes()
        self._messages: dict[int, kvm.RoutingEntry] = {}

    def line(self, number: int) -> KvmLine:
        """The line `number` of the I/O APIC."""
        if not 0 <= number < kvm.KVM_IOAPIC_NUM_PINS:
            raise UsageError(f"the I/O APIC has no line {number}, only 0 to {kvm.KVM_IOAPIC_NUM_PINS - 1}")
        return KvmLine(self._vm, number)

    def pulse(self, number: int) -> KvmPulse:
        """The line `number` of the I/O APIC, to be signalled through an eventfd."""
        if not 0 <= number < kvm.KVM_IOAPIC_NUM_PINS:
            raise UsageError(f"the I/O APIC has no line {number}, only 0 to {kvm.KVM_IOAPIC_NUM_PINS - 1}")
        return KvmPulse(self, number)

    def vector(self) -> KvmVector:
        """A new vector, masked. Raises `ResourceError` when the host has no route left."""
        gsi = self._returned.pop() if self._returned else next(self._unused, None)
        if gsi is None:
            raise ResourceError(
                "all interrupt routes of this machine are in use", hint="fewer devices or queues"
            )
        try:
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self._returned.append(gsi)
            raise ResourceError(f"no eventfd for an interrupt: {error.strerror}") from error
        return KvmVector(self, fd, gsi)

    def route(self, gsi: int, address: int, payload: int) -> None:
        """Let `gsi` be this message. Costs the kernel a grace period, so an unchanged route is left alone."""
        message = kvm.RoutingMsi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=payload)
        entry = kvm.RoutingEntry(gsi=gsi, type=kvm.KVM_IRQ_ROUTING_MSI, u=kvm.RoutingTarget(msi=message))
        known = self._messages.get(gsi)
        if known is not None and bytes(known) == bytes(entry):
            return
        self._messages[gsi] = entry
        routes = [*self._fixed, *self._messages.values()]
        ioctl(self._vm.fd, kvm.KVM_SET_GSI_ROUTING, array(kvm.Routing(nr=len(routes)), routes))

    def connect(self, fd: int, gsi: int, *, undo: bool = False) -> None:
        """Let signals on the eventfd `fd` raise `gsi`, or no longer."""
        flags = kvm.KVM_IRQFD_FLAG_DEASSIGN if undo else 0
        ioctl(self._vm.fd, kvm.KVM_IRQFD, kvm.Irqfd(fd=fd, gsi=gsi, flags=flags))

    def give_back(self, gsi: int) -> None:
        """`gsi` may be another vector's. Its route goes with the next change; no irqfd leads there."""
        self._messages.pop(gsi, None)
        self._returned.append(gsi)


class KvmLine:
    """An interrupt line of the I/O APIC. Driving it to the level that it has costs nothing."""

    def __init__(self, vm: Vm, number: int) -> None:
        self._vm = vm
        self._number = number
        self._level = False

    def set(self, level: bool) -> None:
        """Drive the line high or low."""
        if level != self._level:
            ioctl(self._vm.fd, kvm.KVM_IRQ_LINE, kvm.IrqLevel(irq=self._number, level=level))
            self._level = level


class KvmPulse:
    """A line whose edges come from the eventfd `fd`: KVM raises and lowers it at each signal."""

    def __init__(self, interrupts: KvmInterrupts, number: int) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._interrupts = interrupts
        self._number = number
        interrupts.connect(self.fd, number)

    def close(self) -> None:
        """Give back the eventfd."""
        if self.fd >= 0:
            self._interrupts.connect(self.fd, self._number, undo=True)
            os.close(self.fd)
            self.fd = -1


class KvmVector:
    """A message-signalled interrupt behind the eventfd `fd`."""

    def __init__(self, interrupts: KvmInterrupts, fd: int, gsi: int) -> None:
        self.fd = fd
        self._interrupts = interrupts
        self._gsi = gsi
        self._connected = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def unmask(self, address: int, payload: int) -> None:
        """Deliver from now on as a write of `payload` (32 bits) to `address`. Repeatable."""
        self._interrupts.route(self._gsi, address, payload)
        if not self._connected:
            self._interrupts.connect(self.fd, self._gsi)
            self._connected = True

    def mask(self) -> None:
        """Hold signals back."""
        if self._connected:
            self._interrupts.connect(self.fd, self._gsi, undo=True)
            self._connected = False

    def pending(self) -> bool:
        """Whether a masked vector holds a signal."""
        return not self._connected and bool(self._poll.poll(0))

    def close(self) -> None:
        """Give back the eventfd and the interrupt's route."""
        if self.fd >= 0:
            self.mask()
            os.close(self.fd)
            self.fd = -1
            self._interrupts.give_back(self._gsi)


class KvmDoorbells:
    """ioeventfds on guest memory: writes become signals inside the kernel."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm

    def bind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        """Signal `fd` on writes of `size` bytes (0: any) to memory at `address`, only of `match` if given."""
        try:
            self._change(fd, address, size, match, 0)
        except FileExistsError as error:
            raise ConflictError(f"there is a doorbell at {address:#x} already") from error
        except OSError as error:
            raise ResourceError(f"no doorbell of {size} bytes at {address:#x}: {error.strerror}") from error

    def unbind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        """Undo exactly that `bind`."""
        self._change(fd, address, size, match, kvm.KVM_IOEVENTFD_FLAG_DEASSIGN)

    def _change(self, fd: int, address: int, size: int, match: int | None, flags: int) -> None:
        if match is not None:
            flags |= kvm.KVM_IOEVENTFD_FLAG_DATAMATCH
        bell = kvm.Ioeventfd(datamatch=match or 0, addr=address, len=size, fd=fd, flags=flags)
        ioctl(self._vm.fd, kvm.KVM_IOEVENTFD, bell)


@functools.cache
def _irqchip_routes() -> tuple[kvm.RoutingEntry, ...]:
    """The routes of KVM_CREATE_IRQCHIP, which KVM_SET_GSI_ROUTING drops (arch/x86/kvm/irq_comm.c).

    Each GSI is the I/O APIC's pin of that number; the first 16 are pins of the two PICs too.
    """
    pins = [(gsi, kvm.KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(kvm.KVM_IOAPIC_NUM_PINS)]
    pins += [
        (gsi, kvm.KVM_IRQCHIP_PIC_MASTER if gsi < _PIC_PINS else kvm.KVM_IRQCHIP_PIC_SLAVE, gsi % _PIC_PINS)
        for gsi in range(2 * _PIC_PINS)
    ]
    return tuple(
        kvm.RoutingEntry(
            gsi=gsi,
            type=kvm.KVM_IRQ_ROUTING_IRQCHIP,
            u=kvm.RoutingTarget(irqchip=kvm.RoutingIrqchip(irqchip=chip, pin=pin)),
        )
        for gsi, chip, pin in pins
    )
