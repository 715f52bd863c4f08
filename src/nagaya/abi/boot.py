"""How a kernel is started without firmware: Linux/x86 boot protocol, PVH, multiboot. Only declarations.

- Linux: Documentation/x86/boot.rst and zero-page.rst, protocol 2.15; <asm/bootparam.h>.
- PVH: xen/include/public/arch-x86/hvm/start_info.h, docs/misc/pvh.pandoc.
- multiboot: Multiboot Specification 0.6.96.
"""

from __future__ import annotations

import ctypes

# Linux: the setup header of a bzImage
BOOT_FLAG = 0xAA55
HEADER_MAGIC = b"HdrS"
SETUP_HEADER = 0x1F1  # its offset in the file and in the zero page
SETUP_HEADER_END = 0x202  # plus the byte at 0x201, the jump's distance: where the header ends
SECTOR = 512
DEFAULT_SETUP_SECTORS = 4  # what setup_sects = 0 means
OLDEST_PROTOCOL = 0x020C  # 2.12: the first with xloadflags, which tell whether there is a 64-bit entry
ENTRY_64 = 0x200  # from the start of the protected-mode code
PE_MAGIC = b"MZ"

LOADED_HIGH = 1 << 0  # loadflags
XLF_KERNEL_64 = 1 << 0  # xloadflags
LOADER_UNDEFINED = 0xFF  # type_of_loader: a loader without a number of its own

# Linux: the zero page
E820_MAX = 128
E820_RAM = 1
E820_RESERVED = 2

# PVH
XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_NOTE_NAME = b"Xen\0"
XEN_HVM_START_MAGIC = 0x336EC578

# multiboot
MULTIBOOT_HEADER_MAGIC = 0x1BADB002
MULTIBOOT_LOADER_MAGIC = 0x2BADB002  # in eax at the entry
MULTIBOOT_SEARCH = 8192  # the header lies in the file's first bytes, aligned to 4
MULTIBOOT_REQUIRED = 0xFFFF  # flags that a loader must know or refuse the file
MULTIBOOT_PAGE_ALIGN = 1 << 0
MULTIBOOT_MEMORY_INFO = 1 << 1
MULTIBOOT_ADDRESSES = 1 << 16  # load addresses in the header: what to do with a file that is no ELF
MULTIBOOT_INFO_MEMORY = 1 << 0
MULTIBOOT_INFO_CMDLINE = 1 << 2
MULTIBOOT_INFO_MODS = 1 << 3
MULTIBOOT_INFO_MMAP = 1 << 6
MULTIBOOT_INFO_LOADER = 1 << 9


class _Packed(ctypes.LittleEndianStructure):
    _pack_ = 1


class SetupHeader(_Packed):
    """struct setup_header, from offset 0x1f1."""

    _fields_ = (
        ("setup_sects", ctypes.c_uint8),
        ("root_flags", ctypes.c_uint16),
        ("syssize", ctypes.c_uint32),
        ("ram_size", ctypes.c_uint16),
        ("vid_mode", ctypes.c_uint16),
        ("root_dev", ctypes.c_uint16),
        ("boot_flag", ctypes.c_uint16),
        ("jump", ctypes.c_uint16),
        ("header", ctypes.c_char * 4),
        ("version", ctypes.c_uint16),
        ("realmode_swtch", ctypes.c_uint32),
        ("start_sys_seg", ctypes.c_uint16),
        ("kernel_version", ctypes.c_uint16),
        ("type_of_loader", ctypes.c_uint8),
        ("loadflags", ctypes.c_uint8),
        ("setup_move_size", ctypes.c_uint16),
        ("code32_start", ctypes.c_uint32),
        ("ramdisk_image", ctypes.c_uint32),
        ("ramdisk_size", ctypes.c_uint32),
        ("bootsect_kludge", ctypes.c_uint32),
        ("heap_end_ptr", ctypes.c_uint16),
        ("ext_loader_ver", ctypes.c_uint8),
        ("ext_loader_type", ctypes.c_uint8),
        ("cmd_line_ptr", ctypes.c_uint32),
        ("initrd_addr_max", ctypes.c_uint32),
        ("kernel_alignment", ctypes.c_uint32),
        ("relocatable_kernel", ctypes.c_uint8),
        ("min_alignment", ctypes.c_uint8),
        ("xloadflags", ctypes.c_uint16),
        ("cmdline_size", ctypes.c_uint32),
        ("hardware_subarch", ctypes.c_uint32),
        ("hardware_subarch_data", ctypes.c_uint64),
        ("payload_offset", ctypes.c_uint32),
        ("payload_length", ctypes.c_uint32),
        ("setup_data", ctypes.c_uint64),
        ("pref_address", ctypes.c_uint64),
        ("init_size", ctypes.c_uint32),
        ("handover_offset", ctypes.c_uint32),
        ("kernel_info_offset", ctypes.c_uint32),
    )


class E820Entry(_Packed):
    """struct boot_e820_entry."""

    _fields_ = (("addr", ctypes.c_uint64), ("size", ctypes.c_uint64), ("type", ctypes.c_uint32))


class BootParams(_Packed):
    """struct boot_params, the "zero page"; what no loader without firmware sets is left out of the names."""

    _fields_ = (
        ("_pad1", ctypes.c_uint8 * 0x70),
        ("acpi_rsdp_addr", ctypes.c_uint64),  # 0x070
        ("_pad2", ctypes.c_uint8 * 0x48),
        ("ext_ramdisk_image", ctypes.c_uint32),  # 0x0c0
        ("ext_ramdisk_size", ctypes.c_uint32),  # 0x0c4
        ("ext_cmd_line_ptr", ctypes.c_uint32),  # 0x0c8
        ("_pad3", ctypes.c_uint8 * 0x11C),
        ("e820_entries", ctypes.c_uint8),  # 0x1e8
        ("_pad4", ctypes.c_uint8 * 6),
        ("sentinel", ctypes.c_uint8),  # 0x1ef
        ("_pad5", ctypes.c_uint8),
        ("hdr", SetupHeader),  # 0x1f1
        ("_pad6", ctypes.c_uint8 * 0x64),
        ("e820_table", E820Entry * E820_MAX),  # 0x2d0
        ("_pad7", ctypes.c_uint8 * 0x330),
    )


class HvmStartInfo(ctypes.LittleEndianStructure):
    """struct hvm_start_info, version 1."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("version", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("nr_modules", ctypes.c_uint32),
        ("modlist_paddr", ctypes.c_uint64),
        ("cmdline_paddr", ctypes.c_uint64),
        ("rsdp_paddr", ctypes.c_uint64),
        ("memmap_paddr", ctypes.c_uint64),
        ("memmap_entries", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class HvmModlistEntry(ctypes.LittleEndianStructure):
    """struct hvm_modlist_entry: a file that was loaded beside the kernel."""

    _fields_ = (
        ("paddr", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("cmdline_paddr", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
    )


class HvmMemmapEntry(ctypes.LittleEndianStructure):
    """struct hvm_memmap_table_entry; `type` as in the zero page."""

    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class MultibootHeader(ctypes.LittleEndianStructure):
    """The header in a kernel's file (3.1)."""

    _fields_ = (
        ("magic", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("checksum", ctypes.c_uint32),
        ("header_addr", ctypes.c_uint32),
        ("load_addr", ctypes.c_uint32),
        ("load_end_addr", ctypes.c_uint32),
        ("bss_end_addr", ctypes.c_uint32),
        ("entry_addr", ctypes.c_uint32),
    )


class MultibootInfo(ctypes.LittleEndianStructure):
    """What ebx points at (3.3), up to the loader's name."""

    _fields_ = (
        ("flags", ctypes.c_uint32),
        ("mem_lower", ctypes.c_uint32),  # KiB from 0
        ("mem_upper", ctypes.c_uint32),  # KiB from 1 MiB
        ("boot_device", ctypes.c_uint32),
        ("cmdline", ctypes.c_uint32),
        ("mods_count", ctypes.c_uint32),
        ("mods_addr", ctypes.c_uint32),
        ("syms", ctypes.c_uint32 * 4),
        ("mmap_length", ctypes.c_uint32),
        ("mmap_addr", ctypes.c_uint32),
        ("drives_length", ctypes.c_uint32),
        ("drives_addr", ctypes.c_uint32),
        ("config_table", ctypes.c_uint32),
        ("boot_loader_name", ctypes.c_uint32),
    )


class MultibootModule(ctypes.LittleEndianStructure):
    """An entry of `mods_addr`."""

    _fields_ = (
        ("mod_start", ctypes.c_uint32),
        ("mod_end", ctypes.c_uint32),
        ("string", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class MultibootMemory(_Packed):
    """An entry of `mmap_addr`; `size` does not count itself."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("addr", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("type", ctypes.c_uint32),
    )
