"""What a file is, for people: a wrong kernel gets an error that says what was given instead."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

from nagaya.abi import boot, elf

HEAD = 64 << 10  # bytes of a file's begin that `describe` looks at

COMPRESSIONS = {  # magic number: name
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",  # the legacy frame, which kernels use
    b"\x04\x22\x4d\x18": "lz4 frame",
    b"BZh": "bzip2",
    b"\x5d\x00\x00": "lzma",
    b"\x89LZO\x00\r\n\x1a\n": "lzo",
}
_PE_MACHINES = {0x14C: "i386", 0x1C0: "ARM", 0x1C4: "ARM", 0x200: "IA-64", 0x8664: "x86-64", 0xAA64: "ARM64"}
_PE_MACHINES |= {0x5032: "RISC-V 32", 0x5064: "RISC-V", 0x6264: "LoongArch"}
_ELF_TYPES = {elf.ET_REL: "object file", elf.ET_DYN: "shared object", elf.ET_CORE: "core dump"}
_OTHERS = (  # offset, magic number, what it is
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"#!", "a script"),
    (0, b"070701", "a cpio archive (an initramfs?)"),
    (0, b"070702", "a cpio archive (an initramfs?)"),
    (0, b"\x71\xc7", "an old cpio archive"),
    (0, b"hsqs", "a squashfs file system"),
    (0, b"!<arch>\n", "an ar archive or a Debian package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"-----BEGIN ", "a PEM file"),
    (0x38, b"ARM\x64", "a Linux kernel for ARM64"),
    (0x38, b"RSC\x05", "a Linux kernel for RISC-V"),
    (0x101, b"ustar", "a tar archive"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0x8001, b"CD001", "an ISO 9660 image"),
)


def compression(head: bytes) -> str:
    """The name of what compressed a file that begins with `head`; "" if nothing known did."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), "")


def is_bzimage(head: bytes) -> bool:
    """Whether `head` begins a Linux/x86 boot image (boot.rst, "The Real-Mode Kernel Header")."""
    flag = boot.SETUP_HEADER + boot.SetupHeader.boot_flag.offset
    magic = boot.SETUP_HEADER + boot.SetupHeader.header.offset
    return (
        head[flag : flag + 2] == boot.BOOT_FLAG.to_bytes(2, "little")
        and head[magic : magic + 4] == boot.HEADER_MAGIC
    )


def describe(head: bytes) -> str:
    """What a file that begins with `head` is, with an article: "a PE executable for ARM64"."""
    if head.startswith(elf.MAGIC):
        found = _elf(head)
    elif is_bzimage(head):
        found = "a Linux bzImage"
    elif known := [what for offset, magic, what in _OTHERS if head.startswith(magic, offset)]:
        found = known[0]
    elif head.startswith(boot.PE_MAGIC):
        found = _pe(head)
    elif name := compression(head):
        found = _compressed(name, head)
    elif head.startswith(b"\x55\xaa", boot.SECTOR - 2):
        found = "a disk image with a boot sector"
    elif not head:
        found = "an empty file"
    elif not any(head):
        found = "a file of zeros"
    elif all(0x20 <= byte < 0x7F or byte in b"\t\n\r\f" for byte in head):
        found = "a text file"
    else:
        found = f"an unknown file that begins with {head[:8].hex(' ')}"
    return found


def _elf(head: bytes) -> str:
    if len(head) < 20:
        return "a truncated ELF file"
    bits = {elf.ELFCLASS32: 32, elf.ELFCLASS64: 64}.get(head[elf.EI_CLASS], 0)
    order = "<" if head[elf.EI_DATA] == elf.ELFDATA2LSB else ">"
    kind, machine = struct.unpack_from(f"{order}HH", head, 16)
    name = elf.MACHINES.get(machine, f"machine {machine}")
    size = f"a {bits}-bit" if bits else "an invalid"
    return f"{size} ELF {_ELF_TYPES.get(kind, 'executable')} for {name}"


def _pe(head: bytes) -> str:
    if len(head) < 0x40:
        return "a DOS executable"
    (at,) = struct.unpack_from("<I", head, 0x3C)
    if at + 6 > len(head) or head[at : at + 4] != b"PE\0\0":
        return "a DOS executable"
    (machine,) = struct.unpack_from("<H", head, at + 4)
    return f"a PE executable for {_PE_MACHINES.get(machine, f'machine {machine:#x}')}"


def _compressed(name: str, head: bytes) -> str:
    inner = b""
    if name == "gzip":
        with suppress(zlib.error):
            inner = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    # A gzip of a gzip of a gzip would go on as long as its author likes.
    if not inner or compression(inner):
        return f"{'an' if name[0] in 'lx' else 'a'} {name} file"
    return f"a gzip of {describe(inner)}"
