"""PVH: the start info (xen/include/public/arch-x86/hvm/start_info.h)."""

from __future__ import annotations

from ctypes import sizeof

from nagaya.abi import boot
from nagaya.hw import layout
from nagaya.hw.wires import Ram
from nagaya.kvm.bootinfo import BootInfo, memory_map


def write_start_info(ram: Ram, told: BootInfo) -> int:
    """Write the start info, module list and memory map into `ram`; returns the first one's address."""
    modlist = layout.START_INFO + sizeof(boot.HvmStartInfo)
    memmap = modlist + sizeof(boot.HvmModlistEntry)
    ranges = memory_map(told.memory)
    info = boot.HvmStartInfo(
        magic=boot.XEN_HVM_START_MAGIC,
        version=1,
        cmdline_paddr=layout.CMDLINE,
        rsdp_paddr=told.rsdp,
        memmap_paddr=memmap,
        memmap_entries=len(ranges),
    )
    if told.initrd is not None:
        info.nr_modules, info.modlist_paddr = 1, modlist
        module = boot.HvmModlistEntry(paddr=told.initrd.address, size=told.initrd.size)
        ram.write(modlist, bytes(module))
    ram.write(layout.START_INFO, bytes(info))
    entries = (boot.HvmMemmapEntry(addr=one.address, size=one.size, type=one.kind) for one in ranges)
    ram.write(memmap, b"".join(map(bytes, entries)))
    return layout.START_INFO
