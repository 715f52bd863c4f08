"""A virtual machine in the kernel: its memory slots, interrupt controllers and clock."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable

from nagaya.abi import kvm
from nagaya.closing import Closing
from nagaya.errors import ResourceError, UnavailableError, UnsupportedError
from nagaya.hw import layout
from nagaya.hw.wires import RamRegion
from nagaya.kvm import msrs
from nagaya.kvm.system import Kvm, ioctl

MAX_VCPUS = 254  # APIC ids of 8 bits, 255 is the broadcast: what an MSI's address can name


class Vm(Closing):
    """A VM with RAM, in-kernel irqchip and PIT, ready for vCPUs. A context manager.

    The order matters: MSR filter, RAM, irqchip. A change of the first two makes the kernel wait for a grace
    period. It is over at once in a VM that is new, and takes 13 ms (filter) or 5 ms (RAM) later.
    """

    def __init__(self, system: Kvm, ram: Iterable[RamRegion] = (), *, irqchip: bool = True) -> None:
        """Raises `ResourceError` or `UnavailableError` if the kernel refuses."""
        self.system = system
        self._slots = 0
        self.fd = _create(system)
        try:
            self.filters_msrs = msrs.install_filter(system, self.fd)
            ioctl(self.fd, kvm.KVM_SET_IDENTITY_MAP_ADDR, ctypes.c_uint64(layout.KVM_IDENTITY_MAP))
            ioctl(self.fd, kvm.KVM_SET_TSS_ADDR, layout.KVM_TSS)
            for region in ram:
                self.add_memory(region)
            self._enable_capabilities()
            if irqchip:
                ioctl(self.fd, kvm.KVM_CREATE_IRQCHIP)
                ioctl(self.fd, kvm.KVM_CREATE_PIT2, kvm.PitConfig(flags=kvm.KVM_PIT_SPEAKER_DUMMY))
                self._mask_pics()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the VM; the kernel frees it when its vCPUs are closed too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def add_memory(self, region: RamRegion, *, read_only: bool = False) -> int:
        """Show `region` to the guest; returns the slot's number."""
        slot = self._slots
        change = kvm.MemoryRegion(
            slot=slot,
            flags=kvm.KVM_MEM_READONLY if read_only else 0,
            guest_phys_addr=region.address,
            memory_size=region.size,
            userspace_addr=region.host,
        )
        try:
            ioctl(self.fd, kvm.KVM_SET_USER_MEMORY_REGION, change)
        except OSError as error:
            raise ResourceError(
                f"KVM takes no memory of {region.size:#x} bytes at {region.address:#x}: {error.strerror}"
            ) from error
        self._slots += 1
        return slot

    def create_vcpu(self, index: int) -> int:
        """The fd of a new vCPU, whose APIC id is `index`. Raises a `NagayaError`."""
        most = min(self.system.max_vcpus, MAX_VCPUS)
        if not 0 <= index < most:
            raise UnsupportedError(f"vCPU {index}: this host gives a machine at most {most} vCPUs")
        try:
            return ioctl(self.fd, kvm.KVM_CREATE_VCPU, index)
        except OSError as error:
            raise ResourceError(f"KVM creates no vCPU {index}: {error.strerror}") from error

    def enable(self, capability: int, *arguments: int) -> bool:
        """Enable a KVM_CAP_* if the host has it; says whether it has."""
        if not self.system.check_extension(capability):
            return False
        words = (ctypes.c_uint64 * 4)(*arguments)
        ioctl(self.fd, kvm.KVM_ENABLE_CAP, kvm.EnableCap(cap=capability, args=words))
        return True

    def get_clock(self) -> int:
        """kvmclock, in ns since the machine's start."""
        data = kvm.ClockData()
        ioctl(self.fd, kvm.KVM_GET_CLOCK, data)
        return int(data.clock)

    def set_clock(self, nanoseconds: int) -> None:
        """Set kvmclock."""
        ioctl(self.fd, kvm.KVM_SET_CLOCK, kvm.ClockData(clock=nanoseconds))

    def _mask_pics(self) -> None:
        """As firmware leaves them. A kernel that takes the ACPI tables' word for it that there are none would
        get each line twice: by the I/O APIC, and by a PIC that interrupts with the vectors of exceptions."""
        for chip in (kvm.KVM_IRQCHIP_PIC_MASTER, kvm.KVM_IRQCHIP_PIC_SLAVE):
            state = kvm.Irqchip(chip_id=chip)
            ioctl(self.fd, kvm.KVM_GET_IRQCHIP, state)
            state.chip.pic.imr = 0xFF
            ioctl(self.fd, kvm.KVM_SET_IRQCHIP, state)

    def _enable_capabilities(self) -> None:
        self.enable(kvm.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)  # with the instruction's bytes
        reasons = kvm.KVM_MSR_EXIT_REASON_UNKNOWN | kvm.KVM_MSR_EXIT_REASON_FILTER
        self.enable(kvm.KVM_CAP_X86_USER_SPACE_MSR, reasons)


def _create(system: Kvm) -> int:
    try:
        return system.create_vm()
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise UnavailableError(
                "KVM creates no VM: another hypervisor uses this CPU's virtualization",
                hint="stop VirtualBox or VMware, or use engine: uml",
            ) from error
        raise ResourceError(f"KVM creates no VM: {error.strerror}") from error
