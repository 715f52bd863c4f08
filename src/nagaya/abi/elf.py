"""ELF files, as far as a loader needs them: the file header, program headers, notes, names of machines.

System V ABI, edition 4.1, chapters 4 and 5 (gabi). Only declarations; `nagaya.kvm.kernelfile` reads them.
"""

from __future__ import annotations

import ctypes

MAGIC = b"\x7fELF"
EI_CLASS = 4  # index in e_ident: 32 or 64 bits
EI_DATA = 5  # byte order
ELFCLASS32 = 1
ELFCLASS64 = 2
ELFDATA2LSB = 1

ET_REL = 1
ET_EXEC = 2
ET_DYN = 3
ET_CORE = 4

EM_386 = 3
EM_X86_64 = 62
MACHINES = {  # e_machine, for messages
    2: "SPARC",
    3: "i386",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC64",
    22: "S390",
    40: "ARM",
    43: "SPARC V9",
    50: "IA-64",
    62: "x86-64",
    183: "ARM64",
    243: "RISC-V",
    258: "LoongArch",
}

PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4


class Elf64Header(ctypes.LittleEndianStructure):
    """Elf64_Ehdr."""

    _fields_ = (
        ("e_ident", ctypes.c_uint8 * 16),
        ("e_type", ctypes.c_uint16),
        ("e_machine", ctypes.c_uint16),
        ("e_version", ctypes.c_uint32),
        ("e_entry", ctypes.c_uint64),
        ("e_phoff", ctypes.c_uint64),
        ("e_shoff", ctypes.c_uint64),
        ("e_flags", ctypes.c_uint32),
        ("e_ehsize", ctypes.c_uint16),
        ("e_phentsize", ctypes.c_uint16),
        ("e_phnum", ctypes.c_uint16),
        ("e_shentsize", ctypes.c_uint16),
        ("e_shnum", ctypes.c_uint16),
        ("e_shstrndx", ctypes.c_uint16),
    )


class Elf32Header(ctypes.LittleEndianStructure):
    """Elf32_Ehdr."""

    _fields_ = (
        ("e_ident", ctypes.c_uint8 * 16),
        ("e_type", ctypes.c_uint16),
        ("e_machine", ctypes.c_uint16),
        ("e_version", ctypes.c_uint32),
        ("e_entry", ctypes.c_uint32),
        ("e_phoff", ctypes.c_uint32),
        ("e_shoff", ctypes.c_uint32),
        ("e_flags", ctypes.c_uint32),
        ("e_ehsize", ctypes.c_uint16),
        ("e_phentsize", ctypes.c_uint16),
        ("e_phnum", ctypes.c_uint16),
        ("e_shentsize", ctypes.c_uint16),
        ("e_shnum", ctypes.c_uint16),
        ("e_shstrndx", ctypes.c_uint16),
    )


class Elf64ProgramHeader(ctypes.LittleEndianStructure):
    """Elf64_Phdr."""

    _fields_ = (
        ("p_type", ctypes.c_uint32),
        ("p_flags", ctypes.c_uint32),
        ("p_offset", ctypes.c_uint64),
        ("p_vaddr", ctypes.c_uint64),
        ("p_paddr", ctypes.c_uint64),
        ("p_filesz", ctypes.c_uint64),
        ("p_memsz", ctypes.c_uint64),
        ("p_align", ctypes.c_uint64),
    )


class Elf32ProgramHeader(ctypes.LittleEndianStructure):
    """Elf32_Phdr."""

    _fields_ = (
        ("p_type", ctypes.c_uint32),
        ("p_offset", ctypes.c_uint32),
        ("p_vaddr", ctypes.c_uint32),
        ("p_paddr", ctypes.c_uint32),
        ("p_filesz", ctypes.c_uint32),
        ("p_memsz", ctypes.c_uint32),
        ("p_flags", ctypes.c_uint32),
        ("p_align", ctypes.c_uint32),
    )


class ElfNote(ctypes.LittleEndianStructure):
    """Elf64_Nhdr; name and descriptor follow, each padded to 4 bytes."""

    _fields_ = (
        ("n_namesz", ctypes.c_uint32),
        ("n_descsz", ctypes.c_uint32),
        ("n_type", ctypes.c_uint32),
    )
