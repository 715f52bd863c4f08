"""The formats of disk image files, told by their headers. Only for files that somebody imports.

A disk of ours never has its format guessed: a guest could write a header of its choice onto it. What is read
here is bounded and checked, and whatever would make a reader open a second file (backing files, extents,
parents) is refused.

Specifications: docs/interop/qcow2.txt of QEMU; VMware Virtual Disk Format 1.1; [MS-VHDX]; Microsoft Virtual
Hard Disk Format 1.0; VirtualBox' VDI as in block/vdi.c of QEMU.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, get_args

from nagaya.errors import NotFoundError, PermissionDeniedError, SpecError
from nagaya.images.qemuimg import Driver
from nagaya.units import human_size

Format = Literal["raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
DRIVERS: Final[dict[Format, Driver]] = {  # QEMU's names
    "raw": "raw",
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhdx": "vhdx",
    "vhd": "vpc",
}

SIZE_LIMIT = 8 * 2**40  # bytes of a disk: all of it is read once, to name it by its content
_HEAD = 1024  # bytes; all fixed headers are shorter
_DESCRIPTOR_LIMIT = 64 * 1024  # bytes of a VMDK's text; a real one has some hundred
_QCOW2 = struct.Struct(">4sIQIIQIIQ")  # to the L1 table's offset
_QCOW2_EXTERNAL_DATA = 1 << 2
_VDI_SIGNATURE = b"\x7f\x10\xda\xbe"
_VHD_FOOTER = 512
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}
_SINGLE_FILE_VMDK = {"monolithicSparse", "streamOptimized"}


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a header says. `size` is the disk's, in bytes; 0 where another place of the file has it."""

    format: Format
    size: int


def recognise(path: Path, stated: Format | None = None) -> Recognised:
    """The format of an image file, `stated` or told by its header, and its disk's size.

    Raises `SpecError` for a file that is damaged, of another format than stated, or needs a second file, and
    for what is not a plain file; `NotFoundError` and `PermissionDeniedError`.
    """
    try:
        _require_plain(path)
        # Were it a FIFO by now, its opening would wait for a writer.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD)
            found: Format = stated or _told(file, head, length)
            size = length if found == "raw" else _READERS[found](path, file, head, length)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}", path=str(path)) from error
    except OSError as error:
        raise PermissionDeniedError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error
    except struct.error as error:
        raise SpecError(f"{path} is too short for {stated or 'its format'}: {length} bytes") from error
    if found == "raw" and (size == 0 or size % 512):
        raise SpecError(f"{path} has {size} bytes; a raw disk image is a multiple of 512, and not empty")
    check_size(path, size)
    return Recognised(found, size)


def _require_plain(path: Path) -> None:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISBLK(mode):
        raise SpecError(
            f"{path} is a block device; an import takes a file",
            hint=f"copy it into one first: qemu-img convert -f raw -O qcow2 {path} disk.qcow2",
        )
    raise SpecError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'not a file')}; an import takes a file")


def check_size(path: Path, size: int) -> None:
    """Raise `SpecError` for a disk larger than we take."""
    if size > SIZE_LIMIT:
        raise SpecError(
            f"{path} holds a disk of {human_size(size)}; at most {human_size(SIZE_LIMIT)} is taken"
        )


def _told(file: BinaryIO, head: bytes, length: int) -> Format:
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD", b"# Disk DescriptorFile")):
        return "vmdk"
    if head[64:68] == _VDI_SIGNATURE:
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"conectix") or _footer(file, length).startswith(b"conectix"):
        return "vhd"
    return "raw"


def _qcow2(path: Path, _file: BinaryIO, head: bytes, _length: int) -> int:
    magic, version, backing, _, cluster_bits, size, crypt, _, _ = _QCOW2.unpack_from(head)
    _expect(path, "qcow2", magic == b"QFI\xfb" and version in (2, 3))
    if backing:
        _refuse(
            path, "it has a backing file, which an import never opens", "flatten it first: qemu-img convert"
        )
    if crypt:
        _refuse(path, "it is encrypted", "decrypt it first: qemu-img convert")
    incompatible = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    if incompatible & _QCOW2_EXTERNAL_DATA:
        _refuse(path, "it keeps its data in another file", "convert it to a single one: qemu-img convert")
    if not 9 <= cluster_bits <= 21:
        raise SpecError(f"{path}: clusters of 2^{cluster_bits} bytes; qcow2 has 2^9 to 2^21")
    return int(size)


def _vmdk(path: Path, file: BinaryIO, head: bytes, _length: int) -> int:
    if not head.startswith(b"KDMV"):
        hint = "make it a single file: qemu-img convert -O vmdk"
        _expect(path, "vmdk", head.startswith((b"COWD", b"# Disk DescriptorFile")))
        _refuse(path, "it only describes a disk, whose content is in other files", hint)
    capacity, _grain, offset, sectors = struct.unpack_from("<QQQQ", head, 12)
    file.seek(min(offset, 2**40) * 512)
    text = file.read(min(sectors * 512, _DESCRIPTOR_LIMIT)).decode(errors="replace")
    kind = re.search(r'^\s*createType\s*=\s*"([^"\n]*)"', text, re.MULTILINE)
    if kind is not None and kind[1] not in _SINGLE_FILE_VMDK:
        _refuse(
            path,
            f"it is of the kind {kind[1]!r}",
            f"only {' and '.join(sorted(_SINGLE_FILE_VMDK))} are one file",
        )
    if re.search(r"^\s*parentFileNameHint\s*=", text, re.MULTILINE):
        _refuse(path, "it has a parent, which an import never opens", "consolidate its snapshots first")
    return int(capacity) * 512


def _vdi(path: Path, _file: BinaryIO, head: bytes, _length: int) -> int:
    _expect(path, "vdi", head[64:68] == _VDI_SIGNATURE)
    kind, size = struct.unpack_from("<I", head, 76)[0], struct.unpack_from("<Q", head, 368)[0]
    if kind not in (1, 2):  # dynamic, fixed
        _refuse(
            path,
            f"it is an image of kind {kind}",
            "only 1 (dynamic) and 2 (fixed) stand alone; clone it first",
        )
    return int(size)


def _vhdx(path: Path, _file: BinaryIO, head: bytes, _length: int) -> int:
    _expect(path, "vhdx", head.startswith(b"vhdxfile"))
    return 0  # in the metadata region; qemu-img says it, and refuses one with a parent


def _vhd(path: Path, file: BinaryIO, head: bytes, length: int) -> int:
    footer = head[:_VHD_FOOTER] if head.startswith(b"conectix") else _footer(file, length)
    _expect(path, "vhd", footer.startswith(b"conectix"))
    size, kind, checksum = struct.unpack_from(">Q4xII", footer, 48)
    _expect(path, "vhd", checksum == ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF)
    if kind not in (2, 3):  # fixed, dynamic
        _refuse(
            path, f"it is a disk of type {kind}", "only 2 (fixed) and 3 (dynamic) stand alone; merge it first"
        )
    return int(size)


_READERS = {"qcow2": _qcow2, "vmdk": _vmdk, "vdi": _vdi, "vhdx": _vhdx, "vhd": _vhd}


def _footer(file: BinaryIO, length: int) -> bytes:
    file.seek(max(0, length - _VHD_FOOTER))
    return file.read(_VHD_FOOTER)


def _expect(path: Path, name: str, true: bool) -> None:
    if not true:
        raise SpecError(f"{path} is not a {name} image, or its header is damaged", format=name)


def _refuse(path: Path, why: str, hint: str) -> None:
    raise SpecError(f"{path} cannot be imported: {why}", hint=hint)
