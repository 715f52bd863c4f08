"""A kernel's file, read once and checked: where its parts go in memory, and how it wants to be entered.

Nothing of the file is trusted: every offset, size and address is checked here, once, against the file's size
and the guest's layout. Why pyelftools is not used: docs/decisions/0007-boot.md.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, TypeVar

from nagaya.abi import boot, elf
from nagaya.errors import SpecError
from nagaya.hw import layout
from nagaya.kvm.filetype import HEAD, compression, describe, is_bzimage

_S = TypeVar("_S", bound=ctypes.LittleEndianStructure)
_PROGRAM_HEADERS_MAX = 256  # Linux has 5; what one more table may cost
_NOTES_MAX = 64 << 10  # bytes of one note segment; Linux has some hundred


class Protocol(StrEnum):
    """How a kernel is entered."""

    LINUX = "linux"  # 64 bits, Documentation/x86/boot.rst
    PVH = "pvh"  # 32 bits, protected mode, no paging
    MULTIBOOT = "multiboot"  # likewise, with another information structure


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the file that goes to memory; what is beyond `length` is zero."""

    address: int  # guest-physical
    size: int  # bytes in memory
    offset: int  # in the file
    length: int  # bytes in the file

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.address + self.size


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A kernel that can be loaded."""

    path: str
    protocol: Protocol
    entry: int  # guest-physical
    segments: tuple[Segment, ...]
    setup: boot.SetupHeader | None = None  # of a bzImage

    @property
    def end(self) -> int:
        """The first address that it does not occupy."""
        return max(segment.end for segment in self.segments)


class _Source:
    """The file, with reads that are always within it."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self.file = file
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.head = self.read(0, min(HEAD, self.size))

    def read(self, offset: int, size: int) -> bytes:
        self.file.seek(offset)
        content = self.file.read(size)
        if len(content) != size:
            raise self.wrong(f"is truncated: {offset + size} bytes are needed, it has {self.size}")
        return content

    def struct(self, kind: type[_S], offset: int) -> _S:
        size = ctypes.sizeof(kind)
        if offset + size > self.size:
            raise self.wrong(f"is truncated: {offset + size} bytes are needed, it has {self.size}")
        return kind.from_buffer_copy(self.read(offset, size))

    def wrong(self, what: str, hint: str = "") -> SpecError:
        return SpecError(
            f"kernel {self.path} {what}",
            hint=hint or "a kernel is an x86-64 bzImage or vmlinux, or an ELF file with a PVH note",
            field="boot.kernel",
            path=self.path,
        )


def parse(file: BinaryIO, path: str) -> KernelFile:
    """Read the headers of `file`; `path` is for messages. Raises `SpecError` that says what the file is."""
    source = _Source(file, path)
    if source.head.startswith(elf.MAGIC):
        kernel = _elf(source)
    elif is_bzimage(source.head):
        kernel = _bzimage(source)
    elif found := _multiboot_flat(source):
        kernel = found
    elif compression(source.head):
        raise source.wrong(f"is {describe(source.head)}, which has to be unpacked first")
    else:
        raise source.wrong(f"is {describe(source.head)}")
    _check_segments(source, kernel)
    return kernel


def _check_segments(source: _Source, kernel: KernelFile) -> None:
    if not kernel.segments:
        raise source.wrong("has nothing to load")
    last = None
    for segment in sorted(kernel.segments, key=lambda one: one.address):
        where = f"a segment at {segment.address:#x} of {segment.size:#x} bytes"
        if segment.offset + segment.length > source.size:
            raise source.wrong(
                f"is truncated: {where} ends at {segment.offset + segment.length} of its {source.size} bytes"
            )
        if segment.length > segment.size:
            raise source.wrong(f"has {where} with {segment.length:#x} bytes of content")
        if segment.address < layout.KERNEL:
            raise source.wrong(f"has {where}, and what is below {layout.KERNEL:#x} is not the kernel's")
        if segment.end > layout.LOW_RAM_END:
            raise source.wrong(f"has {where}, and low RAM ends at {layout.LOW_RAM_END:#x}")
        if last is not None and segment.address < last.end:
            raise source.wrong(f"has {where}, which overlaps the one at {last.address:#x}")
        last = segment
    if not any(segment.address <= kernel.entry < segment.end for segment in kernel.segments):
        raise source.wrong(f"has its entry at {kernel.entry:#x}, which is in none of its segments")


def _elf(source: _Source) -> KernelFile:
    head = source.head
    if len(head) < ctypes.sizeof(elf.Elf32Header):
        raise source.wrong("is a truncated ELF file")
    wide = head[elf.EI_CLASS] == elf.ELFCLASS64
    machine = int.from_bytes(head[18:20], "little")
    if head[elf.EI_DATA] != elf.ELFDATA2LSB or machine not in (elf.EM_X86_64, elf.EM_386):
        raise source.wrong(f"is {describe(head)}, and this machine is x86-64")
    header = source.struct(elf.Elf64Header, 0) if wide else source.struct(elf.Elf32Header, 0)
    if header.e_type != elf.ET_EXEC and not (wide and header.e_type == elf.ET_DYN):
        raise source.wrong(f"is {describe(head)}, not a kernel")
    headers = list(_program_headers(source, header, wide))
    if any(one.p_type == elf.PT_INTERP for one in headers):
        raise source.wrong("is a program that wants a dynamic linker, not a kernel")
    segments = tuple(
        Segment(one.p_paddr, one.p_memsz, one.p_offset, one.p_filesz)
        for one in headers
        if one.p_type == elf.PT_LOAD and one.p_memsz
    )
    entry = _pvh_entry(source, headers)
    if entry is not None:
        return KernelFile(source.path, Protocol.PVH, entry, segments)
    if _multiboot_header(source) is not None:
        return KernelFile(source.path, Protocol.MULTIBOOT, header.e_entry, segments)
    if not wide:
        raise source.wrong("is a 32-bit ELF file without a PVH note or a multiboot header")
    return KernelFile(source.path, Protocol.LINUX, header.e_entry, segments)


def _program_headers(
    source: _Source, header: elf.Elf64Header | elf.Elf32Header, wide: bool
) -> Iterator[elf.Elf64ProgramHeader | elf.Elf32ProgramHeader]:
    kind: type[elf.Elf64ProgramHeader | elf.Elf32ProgramHeader]
    kind = elf.Elf64ProgramHeader if wide else elf.Elf32ProgramHeader
    if header.e_phentsize != ctypes.sizeof(kind) or not 0 < header.e_phnum <= _PROGRAM_HEADERS_MAX:
        raise source.wrong(
            f"has {header.e_phnum} program headers of {header.e_phentsize} bytes; it takes 1 to"
            f" {_PROGRAM_HEADERS_MAX} of {ctypes.sizeof(kind)}"
        )
    for index in range(header.e_phnum):
        yield source.struct(kind, header.e_phoff + index * header.e_phentsize)


def _pvh_entry(source: _Source, headers: list[elf.Elf64ProgramHeader | elf.Elf32ProgramHeader]) -> int | None:
    """The 32-bit entry that a note of owner "Xen" names."""
    for one in headers:
        if one.p_type != elf.PT_NOTE:
            continue
        if one.p_offset + one.p_filesz > source.size:
            raise source.wrong(
                f"is truncated: its notes end at {one.p_offset + one.p_filesz} of its {source.size} bytes"
            )
        notes = source.read(one.p_offset, min(one.p_filesz, _NOTES_MAX))
        for owner, kind, body in _notes(notes):
            if owner == boot.XEN_NOTE_NAME and kind == boot.XEN_ELFNOTE_PHYS32_ENTRY and len(body) in (4, 8):
                return int.from_bytes(body, "little")
    return None


def _notes(notes: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + ctypes.sizeof(elf.ElfNote) <= len(notes):
        note = elf.ElfNote.from_buffer_copy(notes, at)
        name = at + ctypes.sizeof(elf.ElfNote)
        body = name + (note.n_namesz + 3 & ~3)
        yield notes[name : name + note.n_namesz], note.n_type, notes[body : body + note.n_descsz]
        at = body + (note.n_descsz + 3 & ~3)


def _bzimage(source: _Source) -> KernelFile:
    """boot.rst, "64-bit Boot Protocol": the protected-mode part, entered at its offset 0x200."""
    setup = source.struct(boot.SetupHeader, boot.SETUP_HEADER)
    # What is behind the end that the header's jump names is code of an older kernel, not fields.
    known = boot.SETUP_HEADER_END - boot.SETUP_HEADER + (setup.jump >> 8)
    setup = boot.SetupHeader.from_buffer_copy(
        bytes(setup)[:known].ljust(ctypes.sizeof(boot.SetupHeader), b"\0")
    )
    if setup.version < boot.OLDEST_PROTOCOL or not setup.xloadflags & boot.XLF_KERNEL_64:
        raise source.wrong(
            f"is a bzImage of boot protocol {setup.version >> 8}.{setup.version & 0xFF:02}"
            " without a 64-bit entry",
            hint="take an x86-64 kernel, version 3.8 or later",
        )
    offset = protected_mode(setup)
    if offset >= source.size:
        raise source.wrong(f"is truncated: its code begins at {offset}, it has {source.size} bytes")
    length = source.size - offset
    segment = Segment(setup.pref_address, max(setup.init_size, length), offset, length)
    return KernelFile(source.path, Protocol.LINUX, setup.pref_address + boot.ENTRY_64, (segment,), setup)


def protected_mode(setup: boot.SetupHeader) -> int:
    """Where in a bzImage the protected-mode code begins."""
    return ((setup.setup_sects or boot.DEFAULT_SETUP_SECTORS) + 1) * boot.SECTOR


def _multiboot_header(source: _Source) -> tuple[int, boot.MultibootHeader] | None:
    """The header and where it is: the first match in the file's begin (Multiboot 0.6.96, 3.1)."""
    magic = boot.MULTIBOOT_HEADER_MAGIC.to_bytes(4, "little")
    head = source.head[: boot.MULTIBOOT_SEARCH]
    at = head.find(magic)
    while at != -1:
        if at % 4 == 0 and at + ctypes.sizeof(boot.MultibootHeader) <= len(head):
            header = boot.MultibootHeader.from_buffer_copy(head, at)
            if (header.magic + header.flags + header.checksum) & 0xFFFFFFFF == 0:
                unknown = (
                    header.flags
                    & boot.MULTIBOOT_REQUIRED
                    & ~(boot.MULTIBOOT_PAGE_ALIGN | boot.MULTIBOOT_MEMORY_INFO)
                )
                if unknown:
                    raise source.wrong(
                        f"is a multiboot kernel that wants flags {unknown:#x}, which no machine here offers"
                    )
                return at, header
        at = head.find(magic, at + 1)
    return None


def _multiboot_flat(source: _Source) -> KernelFile | None:
    """A multiboot kernel that is no ELF file says in its header where it goes."""
    found = _multiboot_header(source)
    if found is None or not found[1].flags & boot.MULTIBOOT_ADDRESSES:
        return None
    at, header = found
    offset = at - (header.header_addr - header.load_addr)
    if not 0 <= offset <= at:
        raise source.wrong(
            f"has a multiboot header that loads it at {header.load_addr:#x}, the header at"
            f" {header.header_addr:#x}"
        )
    end = header.load_end_addr or header.load_addr + source.size - offset
    length = end - header.load_addr
    size = max((header.bss_end_addr or end) - header.load_addr, 0)
    if length < 0:
        raise source.wrong(f"has a multiboot header that loads it from {header.load_addr:#x} to {end:#x}")
    segment = Segment(header.load_addr, max(size, length), offset, length)
    return KernelFile(source.path, Protocol.MULTIBOOT, header.entry_addr, (segment,))
