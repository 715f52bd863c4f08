"""Headers of foreign disk images: told, bounded, and refused where they lead to a second file."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import NagayaError, NotFoundError, SpecError
from nagaya.images.formats import FORMATS, SIZE_LIMIT, recognise

MIB = 2**20


def qcow2(backing: int = 0, size: int = MIB, crypt: int = 0, incompatible: int = 0, bits: int = 16) -> bytes:
    """The header of version 3."""
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, backing, 9, bits, size, crypt, 1, 0, 0, 0, 0, 0)
    return head.ljust(72, b"\0") + struct.pack(">QQQII", incompatible, 0, 0, 4, 104)


def vmdk(text: str, capacity: int = MIB // 512) -> bytes:
    """A sparse extent whose descriptor is in its second sector."""
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, 1, 2)
    return head.ljust(512, b"\0") + text.encode().ljust(1024, b"\0")


def vdi(kind: int = 1, size: int = MIB) -> bytes:
    head = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + b"\x7f\x10\xda\xbe"
    return (head.ljust(76, b"\0") + struct.pack("<I", kind)).ljust(368, b"\0") + struct.pack("<Q", size)


def vhd(kind: int = 2, size: int = MIB, wrong: int = 0) -> bytes:
    """A footer, as a fixed disk has at its end."""
    footer = bytearray(b"conectix".ljust(512, b"\0"))
    footer[48:56], footer[60:64] = struct.pack(">Q", size), struct.pack(">I", kind)
    footer[64:68] = struct.pack(">I", (~sum(footer) & 0xFFFFFFFF) ^ wrong)
    return bytes(footer)


SINGLE = 'createType="monolithicSparse"\n'
GOOD = [
    ("qcow2", qcow2(), MIB),
    ("vmdk", vmdk(SINGLE), MIB),
    ("vdi", vdi(), MIB),
    ("vhdx", b"vhdxfile" + b"\0" * 504, 0),
    ("vhd", b"\0" * MIB + vhd(), MIB),
    ("raw", b"\0" * MIB, MIB),
]


@pytest.mark.parametrize(("name", "content", "size"), GOOD, ids=[name for name, *_ in GOOD])
def test_each_format_is_told_by_its_header(tmp_path: Path, name: str, content: bytes, size: int) -> None:
    file = tmp_path / "disk"
    file.write_bytes(content)
    found = recognise(file)
    assert (found.format, found.size) == (name, size)


BAD = [
    (qcow2(backing=0x200), "backing file"),
    (qcow2(crypt=2), "encrypted"),
    (qcow2(incompatible=4), "its data in another file"),
    (qcow2(bits=63), r"2\^63"),
    (qcow2(size=2**63), "at most 8192 GiB|at most 8.0 TiB"),
    (qcow2()[:30], "too short"),
    (vmdk('createType="twoGbMaxExtentSparse"\n'), "twoGbMaxExtentSparse"),
    (vmdk(SINGLE + 'parentFileNameHint="/etc/shadow"\n'), "parent"),
    (b'# Disk DescriptorFile\nRW 1 FLAT "/etc/shadow" 0\n'.ljust(512), "only describes a disk"),
    (b"COWD".ljust(512), "only describes a disk"),
    (vdi(kind=4), "kind 4"),
    (b"\0" * MIB + vhd(kind=4), "type 4"),
    (b"\0" * MIB + vhd(wrong=1), "not a vhd image, or its header is damaged"),
    (b"", "not empty"),
    (b"x" * 513, "multiple of 512"),
]


@pytest.mark.parametrize(("content", "said"), BAD, ids=[said for _, said in BAD])
def test_what_needs_another_file_or_is_absurd_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "disk"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=said):
        recognise(file)


def test_a_stated_format_is_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(qcow2(backing=0x200).ljust(MIB, b"\0"))
    assert recognise(file, "raw").format == "raw"
    with pytest.raises(SpecError, match="not a vdi image"):
        recognise(file, "vdi")


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        recognise(tmp_path / "none")


def test_what_is_not_a_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    for path, kind in (
        (tmp_path / "fifo", "a FIFO"),  # which nobody writes: its opening must not wait
        (tmp_path / "socket", "a socket"),
        (tmp_path, "a directory"),
        (Path("/dev/null"), "a character device"),
    ):
        with pytest.raises(SpecError, match=f"{path} is {kind}; an import takes a file"):
            recognise(path)


@given(
    st.sampled_from([content[:2048] + content[-512:] for _, content, _ in GOOD]),
    st.lists(st.tuples(st.integers(0, 2559), st.integers(0, 255)), max_size=6),
    st.integers(0, 2560),
    st.sampled_from([None, *FORMATS]),
)
def test_a_mutated_header_is_told_or_refused_but_never_trusted(
    content: bytes, changes: list[tuple[int, int]], length: int, stated: str | None
) -> None:
    mutated = bytearray(content)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    with tempfile.NamedTemporaryFile() as file:
        file.write(mutated[:length])
        file.flush()
        try:
            found = recognise(Path(file.name), stated)  # type: ignore[arg-type]  # one of FORMATS
        except NagayaError as error:
            assert str(error)
        else:
            assert 0 <= found.size <= SIZE_LIMIT
