"""Compressed kernels become what a machine boots, once, and wrong ones an error that says what they are."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lz4.block  # type: ignore[import-untyped]
import lz4.frame  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.errors import NagayaError, NotFoundError, SpecError
from nagaya.kvm import unpack as module
from nagaya.kvm.unpack import unpack
from nagaya.testing.kernels import bzimage, elf64

KERNEL = elf64(memory=3 << 20, code=os.urandom(1 << 20) + bytes(2 << 20))


def lz4_legacy(content: bytes) -> bytes:
    """What `lz4 -l` writes."""
    packed = b"\x02\x21\x4c\x18"
    for start in range(0, len(content), 8 << 20):
        block = lz4.block.compress(content[start : start + (8 << 20)], store_size=False)
        packed += len(block).to_bytes(4, "little") + block
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda content: lzma.compress(content, check=lzma.CHECK_CRC32),
    "lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor(level=3).compress,
    "lz4": lz4_legacy,
    "lz4 frame": lz4.frame.compress,
}


def packed_bzimage(name: str, content: bytes = KERNEL) -> bytes:
    """As the kernel's build makes it: what was compressed is followed by its size, unless gzip has it."""
    size = b"" if name == "gzip" else len(content).to_bytes(4, "little")
    return bzimage(payload=PACKERS[name](content) + size)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", PACKERS)
def test_a_bzimage_becomes_the_elf_file_inside(name: str, tmp_path: Path) -> None:
    image = write(tmp_path / "bzImage", packed_bzimage(name))
    assert unpack(image, tmp_path / "cache").read_bytes() == KERNEL


@pytest.mark.parametrize("name", PACKERS)
def test_a_compressed_file_becomes_what_it_was(name: str, tmp_path: Path) -> None:
    image = write(tmp_path / "vmlinux.packed", PACKERS[name](KERNEL))
    assert unpack(image, tmp_path / "cache").read_bytes() == KERNEL


def test_a_compressed_bzimage_is_unpacked_twice(tmp_path: Path) -> None:
    image = write(tmp_path / "bzImage.gz", gzip.compress(packed_bzimage("xz")))
    assert unpack(image, tmp_path / "cache").read_bytes() == KERNEL


LZO = b"\x89LZO\x00\r\n\x1a\n"
OTHERS = [bzimage(payload=LZO + bytes(20)), bzimage(payload=b"what is this"), bzimage()]


@pytest.mark.parametrize("content", [KERNEL, b"", b"text\n", *OTHERS])
def test_what_is_not_compressed_or_can_unpack_itself_is_left_alone(content: bytes, tmp_path: Path) -> None:
    image = write(tmp_path / "k", content)
    assert unpack(image, tmp_path / "cache") == image
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    left = write(tmp_path / "cache" / ".unpack-x", b"half")
    unpack(write(tmp_path / "k", gzip.compress(elf64())), tmp_path / "cache")
    assert not left.exists()


def test_it_is_done_once_until_the_file_changes(tmp_path: Path) -> None:
    image = write(tmp_path / "k", PACKERS["gzip"](KERNEL))
    first = unpack(image, tmp_path / "cache")
    inode = first.stat().st_ino
    assert unpack(image, tmp_path / "cache").stat().st_ino == inode
    write(image, PACKERS["gzip"](elf64()))
    other = unpack(image, tmp_path / "cache")
    assert other != first
    assert other.read_bytes() == elf64()


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    cache = tmp_path / "cache"
    for number in range(4):
        image = write(tmp_path / str(number), PACKERS["gzip"](elf64(memory=4096 + number)))
        os.utime(unpack(image, cache), (number, number))
    assert len(list(cache.glob("*.kernel"))) == 2
    assert unpack(image, cache).stat().st_mtime > 3
    assert {path.name for path in cache.iterdir() if path.suffix != ".kernel"} == {"lock"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gzip.compress(b"hello\n"), "is a gzip of a text file"),
        (zstandard.compress(b"070701"), "is a zstd of a cpio archive"),
        (packed_bzimage("xz", b"#!/bin/sh\n"), "is a bzImage whose kernel is a script"),
        (packed_bzimage("xz")[:-5000], "is truncated: its payload ends at"),
        (LZO + bytes(20), "is compressed with lzo, not gzip, "),
        (bzimage(payload=gzip.compress(KERNEL) + bytes(4)), "bytes were unpacked, it says 0"),
        *((PACKERS[name](KERNEL)[:-5000], f"is damaged: {name}: ") for name in PACKERS),
    ],
)
def test_a_wrong_file_is_called_by_its_name(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        unpack(write(tmp_path / "k", content), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob("*") if path.name != "lock"] == []


def test_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 8 << 20)
    for name in ("gzip", "xz", "zstd", "bzip2", "lz4 frame"):
        image = write(tmp_path / "bomb", PACKERS[name](bytes(100 << 20)))
        with pytest.raises(SpecError, match="unpacks to more than 8388608 bytes"):
            unpack(image, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no such file"):
        unpack(tmp_path / "none", tmp_path / "cache")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="is not a regular file"):
        unpack(tmp_path / "pipe", tmp_path / "cache")


SMALL = [packed_bzimage(name, elf64()) for name in PACKERS] + [PACKERS[name](elf64()) for name in PACKERS]


@settings(deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), max_size=4))
def test_no_file_raises_anything_else(base: bytes, edits: list[tuple[int, int]]) -> None:
    content = bytearray(base)
    for at, value in edits:
        content[at % len(content)] = value
    with tempfile.TemporaryDirectory() as directory, suppress(NagayaError):
        unpack(write(Path(directory) / "k", bytes(content)), Path(directory) / "cache")
