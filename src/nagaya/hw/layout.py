"""Where things are in a guest of our VMM: physical addresses, I/O ports and interrupt lines.

All addresses are guest-physical, all sizes bytes. Nothing else in the tree holds such a number.

    0                      RAM, up to 3 GiB of it
    PCI_MMIO32   3 GiB     BARs of 32 bits
    ECAM         3.5 GiB   PCI configuration space, 256 buses of 1 MiB
    VIRTIO_MMIO            virtio-mmio devices, a page each
    IOAPIC, LAPIC          in the kernel's irqchip
    HIGH_RAM     4 GiB     the rest of RAM
    hot_start              memory that the guest plugs (virtio-mem)
"""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB

# RAM
LOW_RAM_END = 3 * GIB  # RAM below 4 GiB ends here at the latest
HIGH_RAM = 4 * GIB
HOT_ALIGN = 2 * GIB  # Linux' largest memory block (arch/x86/mm/init_64.c)

# Low memory that the boot protocols fill before the first instruction
GDT = 0x500
IDT = 0x520
ZERO_PAGE = 0x7000  # struct boot_params
START_INFO = 0x6000  # struct hvm_start_info (PVH), modules and memory map behind it
BOOT_STACK = 0x8FF0
PAGE_TABLES = 0x9000  # PML4, PDPT, PD: identity map of the first GiB
CMDLINE = 0x20000
CMDLINE_MAX = 64 * KIB
EBDA = 0x9FC00
ACPI_RSDP = 0xE0000  # a table search from here finds it (ACPI 6.5, 5.2.5.1)
ACPI_TABLES = 0xE1000
ACPI_END = 0x100000
KERNEL = 1 * MIB

# Between RAM and 4 GiB
PCI_MMIO32 = 3 * GIB
PCI_MMIO32_SIZE = 512 * MIB
ECAM = 0xE0000000
ECAM_SIZE = 256 * MIB
VIRTIO_MMIO = 0xFEB00000
VIRTIO_MMIO_STRIDE = PAGE
GED = 0xFEA00000  # the event device's registers
VMGENID_PAGE = 0xFF000  # in RAM, reserved: 16 bytes that change when a machine is cloned or restored
IOAPIC = 0xFEC00000
LAPIC = 0xFEE00000
KVM_IDENTITY_MAP = 0xFFFBC000  # a page, and behind it three for the TSS: only old Intel CPUs use them
KVM_TSS = 0xFFFBD000

# I/O ports
RTC_PORT = 0x70
I8042_PORT = 0x60
SERIAL_PORTS = (0x3F8, 0x2F8)
PVPANIC_PORT = 0x505
RESET_PORT = 0xCF9
ACPI_SLEEP_PORT = 0x600  # sleep control and status of the hardware-reduced FADT
PCI_CONFIG_PORT = 0xCF8

# Interrupt lines of the I/O APIC
SERIAL_IRQS = (4, 3)
GED_IRQ = 9
VIRTIO_MMIO_IRQS = (5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
FIRST_MSI_GSI = 24


def hot_start(ram: int) -> int:
    """Where memory is plugged in a machine with `ram` bytes."""
    address, size = ram_ranges(ram)[-1]
    return -(-max(HIGH_RAM, address + size) // HOT_ALIGN) * HOT_ALIGN


def ram_ranges(ram: int) -> tuple[tuple[int, int], ...]:
    """(address, size) of the parts of `ram` bytes, one or two, lowest first."""
    low = min(ram, LOW_RAM_END)
    return ((0, low),) if ram == low else ((0, low), (HIGH_RAM, ram - low))
