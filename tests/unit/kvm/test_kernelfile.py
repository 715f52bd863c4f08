"""What a kernel's file is, and where its parts go."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from ctypes import sizeof
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from nagaya.abi import boot, elf
from nagaya.errors import SpecError
from nagaya.hw import layout
from nagaya.kvm.filetype import describe
from nagaya.kvm.kernelfile import KernelFile, Protocol, Segment, parse
from nagaya.testing.kernels import CODE, bzimage, elf64, multiboot_flat, note, pvh_note


def parsed(content: bytes) -> KernelFile:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return parse(file, "k")


def test_an_elf_file_is_entered_by_the_linux_protocol() -> None:
    kernel = parsed(elf64(memory=0x3000, entry=0x100010))
    assert (kernel.protocol, kernel.entry) == (Protocol.LINUX, 0x100010)
    offset = sizeof(elf.Elf64Header) + sizeof(elf.Elf64ProgramHeader)
    assert kernel.segments == (Segment(layout.KERNEL, 0x3000, offset, len(CODE)),)
    assert kernel.end == 0x103000


def test_a_xen_note_asks_for_pvh() -> None:
    kernel = parsed(elf64(notes=pvh_note(layout.KERNEL + 8)))
    assert (kernel.protocol, kernel.entry) == (Protocol.PVH, layout.KERNEL + 8)


@pytest.mark.parametrize(
    "notes", [note(b"GNU\0", boot.XEN_ELFNOTE_PHYS32_ENTRY, bytes(4)), note(b"Xen\0", 5, bytes(4))]
)
def test_another_note_does_not(notes: bytes) -> None:
    assert parsed(elf64(notes=notes)).protocol == Protocol.LINUX


def test_a_multiboot_header_in_an_elf_file_asks_for_multiboot() -> None:
    kernel = parsed(elf64(code=multiboot_flat(flags=0)))
    assert (kernel.protocol, kernel.entry) == (Protocol.MULTIBOOT, layout.KERNEL)


def test_a_flat_multiboot_kernel_says_where_it_goes() -> None:
    kernel = parsed(multiboot_flat(bss_end_addr=0x200000))
    assert kernel.protocol == Protocol.MULTIBOOT
    assert kernel.segments == (Segment(0x100000, 0x100000, 0, 32 + len(CODE)),)


def test_a_bzimage_is_entered_at_its_64_bit_entry() -> None:
    kernel = parsed(bzimage())
    assert (kernel.protocol, kernel.entry) == (Protocol.LINUX, 16 * layout.MIB + 0x200)
    assert kernel.segments == (Segment(16 * layout.MIB, layout.MIB, 1024, 1024),)
    assert kernel.setup is not None
    assert kernel.setup.cmdline_size == 2047


def test_fields_behind_the_header_of_an_older_bzimage_are_zero() -> None:
    setup = parsed(bzimage(jump=0x66EB, init_size=layout.MIB, kernel_info_offset=7)).setup
    assert setup is not None
    assert (setup.init_size, setup.kernel_info_offset) == (layout.MIB, 0)


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return out.getvalue()


PE_ARM64 = b"MZ".ljust(0x3C, b"\0") + (0x40).to_bytes(4, "little") + b"PE\0\0" + b"\x64\xaa"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is an empty file"),
        (b"\0" * 4096, "is a file of zeros"),
        (b"hello\n", "is a text file"),
        (b"#!/bin/sh\n", "is a script"),
        (b"\x7fELF\x02\x01\x01", "is a truncated ELF file"),
        (gzip.compress(b"x" * 100), "is a gzip of a text file, which has to be unpacked"),
        (gzip.compress(tar()), "is a gzip of a tar archive"),
        (gzip.compress(gzip.compress(b"x")), "is a gzip file"),
        (PE_ARM64, "is a PE executable for ARM64"),
        (elf64(machine=183), "is a 64-bit ELF executable for ARM64, and this machine is x86-64"),
        (b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + b"\x02\0\x28\0".ljust(60, b"\0"), "32-bit ELF .* for ARM"),
        (b"QFI\xfb\0\0\0\3", "is a qcow2 disk image"),
        (b"\xde\xad\xbe\xef", "is an unknown file that begins with de ad be ef"),
        (elf64()[:-8], "is truncated: a segment at 0x100000"),
        (elf64(address=0x8000), "what is below 0x100000 is not the kernel's"),
        (elf64(address=layout.LOW_RAM_END), "low RAM ends at 0xc0000000"),
        (elf64(entry=0x500000), "has its entry at 0x500000, which is in none of its segments"),
        (elf64(memory=0), "has nothing to load"),
        (bzimage(version=0x0206), "boot protocol 2.06 without a 64-bit entry"),
        (bzimage(xloadflags=0), "without a 64-bit entry"),
        (bzimage()[:1024], "is truncated: its code begins at 1024"),
        (bzimage(pref_address=1 << 63), "low RAM ends at"),
        (multiboot_flat(flags=boot.MULTIBOOT_ADDRESSES | 4), "wants flags 0x4"),
        (multiboot_flat(header_addr=0, load_addr=64), "loads it at 0x40, the header at 0x0"),
        (multiboot_flat(load_end_addr=1), "loads it from 0x100000 to 0x1"),
    ],
)
def test_a_wrong_file_is_called_by_its_name(content: bytes, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        parsed(content)
    assert caught.value.facts["field"] == "boot.kernel"


def elf32(*, kind: int = elf.ET_EXEC, header: bytes = b"") -> bytes:
    head = elf.Elf32Header(
        e_type=kind, e_machine=elf.EM_386, e_entry=layout.KERNEL, e_phoff=52, e_phentsize=32, e_phnum=1
    )
    head.e_ident[:7] = [*elf.MAGIC, elf.ELFCLASS32, elf.ELFDATA2LSB, 1]
    part = elf.Elf32ProgramHeader(
        p_type=elf.PT_LOAD, p_offset=84, p_paddr=layout.KERNEL, p_filesz=64, p_memsz=64
    )
    return bytes(head) + bytes(part) + header.ljust(64, b"\xf4")


def test_a_32_bit_file_needs_a_way_in() -> None:
    assert parsed(elf32(header=multiboot_flat(flags=0))).protocol == Protocol.MULTIBOOT
    with pytest.raises(SpecError, match="32-bit ELF file without a PVH note or a multiboot header"):
        parsed(elf32())
    with pytest.raises(SpecError, match="32-bit ELF object file for i386, not a kernel"):
        parsed(elf32(kind=elf.ET_REL))


def test_a_program_of_the_host_is_not_a_kernel() -> None:
    with Path("/bin/sh").open("rb") as file, pytest.raises(SpecError, match="wants a dynamic linker"):
        parse(file, "/bin/sh")


def test_segments_are_those_of_another_reader(tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(".globl _start\n.text\n_start: hlt\n.data\n.quad 1\n.bss\n.skip 70000\n")
    binary = tmp_path / "k"
    command = f"gcc -nostdlib -static -no-pie -Wl,-Ttext=0x200000 -Wl,--build-id=none -o {binary} {source}"
    assert os.system(command) == 0
    with binary.open("rb") as file:
        segments = parse(file, str(binary)).segments
        theirs = [one.header for one in ELFFile(file).iter_segments("PT_LOAD")]
    assert [(one.address, one.size, one.offset, one.length) for one in segments] == [
        (one["p_paddr"], one["p_memsz"], one["p_offset"], one["p_filesz"]) for one in theirs
    ]


BASES = [elf64(notes=pvh_note(layout.KERNEL)), elf32(), bzimage(), multiboot_flat()]
EDIT = st.tuples(
    st.integers(0, 700), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31, 2**32 - 1, 2**64 - 1])
)


@given(st.sampled_from(BASES), st.lists(EDIT, max_size=4), st.integers(0, 2000))
def test_no_file_gets_further_than_its_checks(base: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(base)
    for at, value in edits:
        patch = value.to_bytes(max(1, value.bit_length() + 7 >> 3), "little")
        content[at : at + len(patch)] = patch
    del content[len(content) - cut * (cut < len(content)) :]
    try:
        kernel = parsed(bytes(content))
    except SpecError:
        return
    for segment in kernel.segments:
        assert layout.KERNEL <= segment.address <= segment.end <= layout.LOW_RAM_END
        assert 0 <= segment.length <= segment.size
        assert 0 <= segment.offset <= segment.offset + segment.length <= len(content)
    assert any(segment.address <= kernel.entry < segment.end for segment in kernel.segments)


@given(st.binary(max_size=1024), st.sampled_from([b"", b"MZ", elf.MAGIC, b"\x1f\x8b\x08\x00", b"BZh"]))
def test_anything_can_be_described(tail: bytes, magic: bytes) -> None:
    assert describe(magic + tail).split()[0] in ("a", "an")
