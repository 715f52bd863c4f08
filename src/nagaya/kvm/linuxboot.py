"""The Linux/x86 boot protocol: the zero page (Documentation/x86/boot.rst, zero-page.rst)."""

from __future__ import annotations

from nagaya.abi import boot
from nagaya.hw import layout
from nagaya.hw.wires import Ram
from nagaya.kvm.bootinfo import BootInfo, memory_map

_KERNEL_ALIGNMENT = 2 * layout.MIB  # what Linux is built with


def write_zero_page(ram: Ram, told: BootInfo, setup: boot.SetupHeader | None) -> int:
    """Write the zero page into `ram`; returns its address. `setup` is a bzImage's own header."""
    page = boot.BootParams()
    if setup is None:
        page.hdr.boot_flag = boot.BOOT_FLAG
        page.hdr.header = boot.HEADER_MAGIC
        page.hdr.kernel_alignment = _KERNEL_ALIGNMENT
        page.hdr.loadflags = boot.LOADED_HIGH
    else:
        page.hdr = setup
    page.hdr.type_of_loader = boot.LOADER_UNDEFINED
    page.hdr.cmd_line_ptr = layout.CMDLINE
    if told.initrd is not None:
        page.hdr.ramdisk_image = told.initrd.address
        page.hdr.ramdisk_size = told.initrd.size
    page.acpi_rsdp_addr = told.rsdp
    ranges = memory_map(told.memory)
    page.e820_entries = len(ranges)
    for entry, one in zip(page.e820_table, ranges, strict=False):
        entry.addr, entry.size, entry.type = one.address, one.size, one.kind
    ram.write(layout.ZERO_PAGE, bytes(page))
    return layout.ZERO_PAGE
