"""A machine, assembled in one place and in this order:

1.  memory, because the VM takes its slots before it has interrupt controllers;
2.  VM, interrupts, doorbells;
3.  buses and the devices of the board, which ask the machine for things (`Board`);
4.  PCI, and on it the plane's devices, each connected to its socket; or virtio-mmio and no PCI;
5.  vCPUs, whose exits go to the buses;
6.  firmware's work: BARs, ACPI tables, the kernel, the boot vCPU's registers.

`start` begins the vCPUs' threads. Undone in the other order. A guest's reset is a new machine
(`nagaya.kvm.process`): power-on state is what the constructors make, and nothing else.

Locking: `lock` is held by a vCPU's thread for each access to a bus, and by the main thread for whatever it
does with a device. Devices have no locks of their own. To pause, the lock must not be held.
"""

from __future__ import annotations

import functools
import threading
from contextlib import ExitStack
from typing import ClassVar, Protocol

from nagaya.abi.kvm import CpuidEntry
from nagaya.closing import Closing
from nagaya.errors import ConflictError, MachineFailedError, NagayaError, NotFoundError, ResourceError
from nagaya.hw import i8042, layout, pvpanic, reset, rtc, serial, virtio_mmio
from nagaya.hw.acpi import AcpiConfig, build
from nagaya.hw.bus import Bus
from nagaya.hw.ged import Ged
from nagaya.hw.pci import PciFunction
from nagaya.hw.pci_host import ConfigPorts, Ecam, PciHost
from nagaya.hw.root_port import RootPort
from nagaya.hw.virtio import KINDS
from nagaya.hw.virtio_mmio import VirtioMmio
from nagaya.hw.virtio_pci import VirtioPci
from nagaya.hw.vmgenid import GenerationId
from nagaya.hw.wires import Request
from nagaya.kvm import boot, msrs
from nagaya.kvm.config import DeviceConfig, MachineConfig
from nagaya.kvm.ending import Ending, Reason
from nagaya.kvm.frontend import VhostUserBackend
from nagaya.kvm.irq import KvmDoorbells, KvmInterrupts
from nagaya.kvm.memory import GuestMemory
from nagaya.kvm.models import cpuid
from nagaya.kvm.system import Kvm
from nagaya.kvm.vcpu import Vcpu
from nagaya.kvm.vcpus import Vcpus
from nagaya.kvm.vm import Vm

PORTS = 1 << 16
ADDRESSES = 1 << 52  # of memory (SDM 4.1.4)
SPARE_SLOTS = 4  # for devices that are plugged while the guest runs
PCI_WINDOWS = ((layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE),)
_ENDINGS = {Request.POWEROFF: Reason.POWEROFF, Request.RESET: Reason.RESET, Request.PANICKED: Reason.PANIC}


class Outside(Protocol):
    """What a machine tells its process. Called from any thread, with the machine's lock held or not."""

    def serial_output(self, content: bytes) -> int:
        """The first serial port sends; how many bytes are taken."""

    def serial_room(self) -> None:
        """The first serial port takes input again."""

    def ended(self, ending: Ending) -> None:
        """The guest cannot or will not go on. Called once; its vCPUs are leaving it."""

    def crash_loaded(self) -> None:
        """The guest's kernel panicked, and another one that saves its memory goes on."""

    def ejected(self, device_id: str) -> None:
        """The guest has let go of a device."""


class Device:
    """A device of the plane in this machine."""

    def __init__(self, config: DeviceConfig, machine: Machine, place: tuple[int, int] | None = None) -> None:
        """Connect to the plane. `place`: address and line of virtio-mmio; None: PCI. Raises `NagayaError`."""
        self.id = config.id
        self.backend = VhostUserBackend(config.id, config.socket, machine.memory, queues=config.queues)
        self.function: PciFunction | None = None
        try:
            self.virtio = (
                self._on_pci(config, machine) if place is None else self._on_mmio(config, machine, *place)
            )
        except BaseException:
            self.backend.close()
            raise
        self.port: RootPort | None = None  # the slot, if it was plugged

    def _on_pci(self, config: DeviceConfig, machine: Machine) -> VirtioPci | VirtioMmio:
        card = VirtioPci(
            KINDS[config.kind],
            self.backend,
            machine.memory,
            machine.interrupts,
            machine.doorbells,
            queue_size=config.queue_size,
        )
        self.function = card.function
        return card

    def _on_mmio(
        self, config: DeviceConfig, machine: Machine, base: int, line: int
    ) -> VirtioPci | VirtioMmio:
        card = VirtioMmio(
            KINDS[config.kind],
            self.backend,
            machine.memory,
            machine.interrupts.pulse(line),
            machine.doorbells,
            base=base,
            queue_size=config.queue_size,
        )
        machine.mmio.attach(base, virtio_mmio.SIZE, card)
        return card

    def close(self) -> None:
        """Give all back. Only once it is out of its slot, or the machine at its end."""
        self.virtio.close()
        self.backend.close()


class Machine(Closing):
    """One machine, from power-on to its end. A context manager."""

    # The host's CPUID, the same for all machines of a zygote: to ask takes half a millisecond of a start.
    _supported: ClassVar[tuple[CpuidEntry, ...] | None] = None

    def __init__(self, config: MachineConfig, system: Kvm, outside: Outside) -> None:
        """Assemble it. Raises a `NagayaError` that says what is wrong or missing."""
        self.config = config
        self.lock = threading.Lock()
        self.devices: dict[str, Device] = {}
        self.ending: Ending | None = None
        self._outside = outside
        self._stack = ExitStack()
        try:
            self.memory = self._stack.enter_context(
                GuestMemory(
                    config.memory,
                    hot=config.hot_memory,
                    huge_pages=config.huge_pages,
                    numa_node=config.numa_node,
                )
            )
            self.vm = self._stack.enter_context(Vm(system, self.memory.regions))
            self.interrupts = KvmInterrupts(self.vm)
            self.doorbells = KvmDoorbells(self.vm)
            self.ports = Bus("I/O ports", PORTS)
            self.mmio = Bus("memory", ADDRESSES)
            self._build_board()
            self._build_devices()
            self.vcpus = self._create_vcpus()
            self._boot()
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        """End the vCPUs' threads and give everything back to the host."""
        self._stack.close()

    # Life

    def start(self) -> None:
        """Let the guest begin."""
        self._stack.callback(self.vcpus.stop)
        self.vcpus.start()
        self.vcpus.resume()

    def pause(self) -> None:
        """Return when no vCPU is in the guest."""
        self.vcpus.pause()

    def resume(self) -> None:
        """Let them run again."""
        self.vcpus.resume()

    def power_down(self) -> None:
        """Press the power button."""
        with self.lock:
            self._ged.press_power_button()

    def request(self, what: Request, cause: str) -> None:
        """A device passes on what the guest asks for (`nagaya.hw.wires.Board`). The lock is held."""
        if what is Request.CRASH_LOADED:
            self._outside.crash_loaded()
        else:
            self._end(Ending(_ENDINGS[what], "" if what is Request.POWEROFF else cause))

    # Devices

    def plug(self, config: DeviceConfig) -> None:
        """Add a device while the guest runs. Raises `ConflictError`, `UnavailableError`, `ResourceError`."""
        if config.id in self.devices:
            raise ConflictError(f"{self.config.name} has a device {config.id} already")
        if self.config.transport != "pci":
            raise ConflictError(f"{self.config.name} has no PCI, so no slots", hint="its transport is mmio")
        device = Device(config, self)
        try:
            with self.lock:
                device.port = self._free_port()
                if device.function is not None:
                    device.port.plug(device.function)
                self.devices[config.id] = device
        except BaseException:
            device.close()
            raise

    def unplug(self, device_id: str) -> None:
        """Ask the guest to let go of a device; `Outside.ejected` tells when it has."""
        device = self.devices.get(device_id)
        if device is None:
            raise NotFoundError(f"device {device_id!r} not found in {self.config.name}")
        if device.port is None:
            raise ConflictError(
                f"device {device_id} is on the root bus, where nothing can be unplugged",
                hint="only what was plugged while the machine ran can be",
            )
        with self.lock:
            device.port.request_unplug()

    def remove(self, device_id: str) -> None:
        """Forget a device that the guest has let go of."""
        with self.lock:
            device = self.devices.pop(device_id)
        device.close()

    def attend(self, device: Device) -> None:
        """Hear what a device's backend says; `backend.fd` is readable."""
        with self.lock:
            device.backend.attend(device.virtio.device)

    # Assembly

    def _build_board(self) -> None:
        lines, ports = self.interrupts, self.ports
        self._ged = Ged(lines.line(layout.GED_IRQ))
        self.serial = serial.Serial(
            lines.line(layout.SERIAL_IRQS[0]), self._outside.serial_output, self._outside.serial_room
        )
        ports.attach(layout.SERIAL_PORTS[0], serial.SIZE, self.serial)
        ports.attach(layout.RTC_PORT, rtc.SIZE, rtc.Rtc())
        ports.attach(layout.I8042_PORT + 4, i8042.SIZE, i8042.I8042(self))
        ports.attach(layout.PVPANIC_PORT, pvpanic.SIZE, pvpanic.Pvpanic(self))
        ports.attach(layout.ACPI_SLEEP_PORT, reset.SLEEP_SIZE, reset.SleepControl(self))
        self.mmio.attach(layout.GED, Ged.SIZE, self._ged)

    def _build_devices(self) -> None:
        self.pci = PciHost(self.mmio, PCI_WINDOWS)
        self._stack.callback(self.pci.close)
        self._stack.callback(self._close_devices)
        places = self._mmio_places()
        for slot, config in enumerate(self.config.devices):
            device = self.devices[config.id] = Device(config, self, places[slot] if places else None)
            if device.function is not None:
                self.pci.add(device.function)
        if self.config.transport == "mmio":  # the guest finds no PCI
            self.ports.attach(layout.RESET_PORT, 1, reset.ResetControl(self))
            return
        self.mmio.attach(layout.ECAM, layout.ECAM_SIZE, Ecam(self.pci))
        self.ports.attach(layout.PCI_CONFIG_PORT, 8, ConfigPorts(self.pci, reset.ResetControl(self)))
        for number in range(1, SPARE_SLOTS + 1):
            self.pci.add_port(RootPort(self.interrupts, number, self._ejected))

    def _mmio_places(self) -> tuple[tuple[int, int], ...]:
        """Address and interrupt line of each virtio-mmio device; none on PCI."""
        lines, count = layout.VIRTIO_MMIO_IRQS, len(self.config.devices)
        if self.config.transport == "pci":
            return ()
        if count > len(lines):
            raise ResourceError(
                f"{count} devices: {len(lines)} virtio-mmio devices are the most",
                hint="use the transport pci",
            )
        return tuple((layout.VIRTIO_MMIO + n * layout.VIRTIO_MMIO_STRIDE, lines[n]) for n in range(count))

    def _create_vcpus(self) -> Vcpus:
        vcpus = [
            self._stack.enter_context(
                Vcpu(self.vm, index, ports=self.ports, memory=self.mmio, lock=self.lock)
            )
            for index in range(self.config.cpus)
        ]
        if Machine._supported is None:
            Machine._supported = self.vm.system.supported_cpuid()
        tsc_khz = vcpus[0].tsc_khz()
        for vcpu in vcpus:
            vcpu.set_cpuid(_leaves(self.config.cpu_model, vcpu.index, len(vcpus), tsc_khz))
            vcpu.set_msrs(msrs.initial())
        return Vcpus(vcpus, self._failed)

    def _boot(self) -> None:
        self.pci.power_on()
        windows = PCI_WINDOWS if self.config.transport == "pci" else ()
        hot = ((layout.hot_start(self.config.memory), self.config.hot_memory),)
        tables = _tables(
            AcpiConfig(
                self.config.cpus,
                windows,
                self._mmio_places(),
                ram=layout.ram_ranges(self.config.memory) if self.config.hot_memory else (),
                hot_memory=hot if self.config.hot_memory else (),
            )
        )
        state = boot.load(self.memory, self.config, tables)
        GenerationId(self.memory, self._ged).renew(announce=False)
        boot.apply(state, self.vcpus.vcpus[0])

    # Ends

    def _end(self, ending: Ending) -> None:
        if self.ending is None:
            self.ending = ending
            self.vcpus.request_pause()
            self._outside.ended(ending)

    def _failed(self, error: MachineFailedError) -> None:
        """A vCPU cannot go on: the guest's fault, unless an exception of ours or the host's is behind it."""
        with self.lock:
            ours = error.__cause__ is not None
            self._end(Ending(Reason.FAILED if ours else Reason.FAULT, error.message))

    def _free_port(self) -> RootPort:
        for port in self.pci.ports.values():
            if port.child is None:
                return port
        raise ConflictError(f"{self.config.name} has no free slot", hint=f"it has {SPARE_SLOTS} for hot-plug")

    def _ejected(self, child: PciFunction) -> None:
        """Within the guest's access: the rest is done outside (`remove`)."""
        for device in self.devices.values():
            if device.function is child:
                self._outside.ejected(device.id)
                return

    def _close_devices(self) -> None:
        for device in self.devices.values():
            try:
                device.close()
            except NagayaError:
                continue  # its backend is gone, which is why the machine ends
        self.devices.clear()


@functools.lru_cache(1)
def _leaves(model: str, index: int, cpus: int, tsc_khz: int) -> tuple[CpuidEntry, ...]:
    """CPUID of vCPU `index`, of what `Machine._supported` has. The last is kept: a rehearsal's."""
    return cpuid(model, Machine._supported or (), index=index, cpus=cpus, tsc_khz=tsc_khz)


@functools.cache
def _tables(config: AcpiConfig) -> bytes:
    """A zygote's machines are mostly alike, and a guest's reset makes the same one again."""
    return build(config)
