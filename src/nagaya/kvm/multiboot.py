"""Multiboot 0.6.96: the information structure (3.3)."""

from __future__ import annotations

from ctypes import sizeof

from nagaya.abi import boot
from nagaya.hw import layout
from nagaya.hw.wires import Ram
from nagaya.kvm.bootinfo import BootInfo, memory_map

LOADER_MAGIC = boot.MULTIBOOT_LOADER_MAGIC
_NAME = b"nagaya\0"


def write_info(ram: Ram, told: BootInfo) -> int:
    """Write the information structure and what it points at into `ram`; returns its address."""
    module = layout.START_INFO + sizeof(boot.MultibootInfo)
    name = module + sizeof(boot.MultibootModule)
    mmap = name + 8
    entries = b"".join(
        bytes(boot.MultibootMemory(size=20, addr=one.address, len=one.size, type=one.kind))
        for one in memory_map(told.memory)
    )
    low = layout.ram_ranges(told.memory)[0][1]
    info = boot.MultibootInfo(
        flags=boot.MULTIBOOT_INFO_MEMORY
        | boot.MULTIBOOT_INFO_CMDLINE
        | boot.MULTIBOOT_INFO_MMAP
        | boot.MULTIBOOT_INFO_LOADER,
        mem_lower=layout.EBDA // layout.KIB,
        mem_upper=(low - layout.KERNEL) // layout.KIB,
        cmdline=layout.CMDLINE,
        boot_loader_name=name,
        mmap_addr=mmap,
        mmap_length=len(entries),
    )
    if told.initrd is not None:
        info.flags |= boot.MULTIBOOT_INFO_MODS
        info.mods_count, info.mods_addr = 1, module
        initrd = boot.MultibootModule(
            mod_start=told.initrd.address, mod_end=told.initrd.address + told.initrd.size
        )
        ram.write(module, bytes(initrd))
    ram.write(layout.START_INFO, bytes(info))
    ram.write(name, _NAME)
    ram.write(mmap, entries)
    return layout.START_INFO
