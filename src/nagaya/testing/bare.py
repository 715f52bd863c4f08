"""A machine of one vCPU around a payload: memory, buses, PCI, a serial port. No monitor, no jail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from nagaya.errors import MachineFailedError
from nagaya.hw import layout
from nagaya.hw.bus import Bus
from nagaya.hw.pci_host import Ecam, PciHost
from nagaya.hw.virtio import KINDS
from nagaya.hw.virtio_pci import VirtioPci
from nagaya.kvm import boot
from nagaya.kvm.config import MachineConfig
from nagaya.kvm.frontend import VhostUserBackend
from nagaya.kvm.irq import KvmDoorbells, KvmInterrupts
from nagaya.kvm.memory import GuestMemory
from nagaya.kvm.system import Kvm
from nagaya.kvm.vcpu import Vcpu
from nagaya.kvm.vcpus import Vcpus
from nagaya.kvm.vm import Vm

EXIT_PORT = 0xF4
_TRANSMITTER_EMPTY = 0x20  # the serial port's line status


class Out:
    """A port that carries bytes out of the payload."""

    def __init__(self, sink: Callable[[int], None], status: int = 0) -> None:
        """`sink` gets what is written at offset 0; all else reads as `status`."""
        self._sink = sink
        self._status = status

    def read(self, offset: int, size: int) -> int:
        """The status."""
        return self._status

    def write(self, offset: int, size: int, value: int) -> None:
        """To the sink."""
        if offset == 0:
            self._sink(value)


class Bare:
    """Runs `kernel`; a context manager. Devices are added before `start`."""

    def __init__(self, kernel: Path, cmdline: str = "", *, memory: int = 64 << 20) -> None:
        self.output = ""
        self.status: int | None = None
        self.error: MachineFailedError | None = None
        self.lock = threading.Lock()
        self.devices: list[VirtioPci] = []
        self.backends: list[VhostUserBackend] = []
        self._changed = threading.Condition()
        self.memory = GuestMemory(memory)
        self.system = Kvm()
        self.vm = Vm(self.system, self.memory.regions)
        self.interrupts, self.doorbells = KvmInterrupts(self.vm), KvmDoorbells(self.vm)
        self.ports, self.space = Bus("ports", 1 << 16), Bus("memory", 1 << 52)
        self.host = PciHost(self.space, [(layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE)])
        self.space.attach(layout.ECAM, layout.ECAM_SIZE, Ecam(self.host))
        self.ports.attach(layout.SERIAL_PORTS[0], 8, Out(self._print, _TRANSMITTER_EMPTY))
        self.ports.attach(EXIT_PORT, 4, Out(self._ended))
        self.vcpu = Vcpu(self.vm, 0, ports=self.ports, memory=self.space, lock=self.lock)
        self.vcpu.set_cpuid(self.system.supported_cpuid())
        self.vcpus = Vcpus([self.vcpu], self._failed)
        config = MachineConfig("bare", "", memory, kernel=str(kernel), cmdline=cmdline)
        boot.apply(boot.load(self.memory, config), self.vcpu)

    def add(self, kind: str, socket: Path, *, queue_size: int = 256) -> VirtioPci:
        """A virtio device whose backend listens at `socket`."""
        backend = VhostUserBackend(kind, str(socket), self.memory)
        self.backends.append(backend)
        device = VirtioPci(
            KINDS[kind], backend, self.memory, self.interrupts, self.doorbells, queue_size=queue_size
        )
        self.devices.append(device)
        self.host.add(device.function)
        return device

    def start(self) -> None:
        """Power on."""
        self.host.power_on()
        self.vcpus.start()
        self.vcpus.resume()

    def wait(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Until it is so, or the payload ended; fails with the payload's output."""
        with self._changed:
            done = self._changed.wait_for(lambda: until() or self.over, seconds)
        if not done or not (until() or self.status == 0):
            raise MachineFailedError(
                f"the payload did not get there: {self.error or self.status}\n{self.output}"
            )

    def said(self, text: str, seconds: float = 60) -> None:
        """Until the payload has printed `text`."""
        self.wait(lambda: text in self.output, seconds)

    def finish(self, seconds: float = 60) -> str:
        """Run to the payload's end, which must be a success; its output."""
        self.wait(lambda: self.over, seconds)
        if self.status != 0:
            raise MachineFailedError(f"the payload failed: {self.error or self.status}\n{self.output}")
        return self.output

    @property
    def over(self) -> bool:
        """Whether the payload has ended or failed."""
        return self.status is not None or self.error is not None

    def _print(self, byte: int) -> None:
        with self._changed:
            self.output += chr(byte)
            self._changed.notify_all()

    def _ended(self, status: int) -> None:
        with self._changed:
            self.status = status
            self._changed.notify_all()
        self.vcpus.request_pause()

    def _failed(self, error: MachineFailedError) -> None:
        with self._changed:
            self.error = error
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.vcpus.stop()
        self.host.close()
        for device in self.devices:
            device.close()
        self.vcpu.close()
        self.vm.close()
        self.system.close()
        self.memory.close()
