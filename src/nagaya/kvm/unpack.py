"""Unpacks a compressed kernel on the host, once, so that no guest spends its first second on it.

A bzImage carries its kernel compressed and unpacks itself, in the guest, at every start; here the ELF file
inside is kept among other unpacked kernels, and so in the page cache. Runs before a machine starts, outside
its jail: the file is read as a stream, its output is bounded, and nothing in it is executed.
"""

from __future__ import annotations

import bz2
import fcntl
import hashlib
import lzma
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import sizeof
from pathlib import Path
from typing import BinaryIO, Protocol

from nagaya.abi import boot, elf
from nagaya.errors import NotFoundError, PermissionDeniedError, ResourceError, SpecError
from nagaya.kvm.filetype import HEAD, compression, describe, is_bzimage
from nagaya.kvm.kernelfile import protected_mode

LIMIT = 1 << 30  # bytes that a kernel may have unpacked: ten times Debian's
_CHUNK = 1 << 20
_ZSTD_CHUNK = (
    4 << 10
)  # of input, as output is not bounded: 4 bytes become 128 KiB at most (RFC 8878, 3.1.1.2)
_LZ4_BLOCK = 8 << 20  # of the legacy format (lz4_Frame_format.md, "Legacy frame")
_PREFIX = ".unpack-"
_KEPT = 16  # unpacked kernels in the cache
_LZMA_MEMORY = 256 << 20  # of the decoder, for a dictionary of 128 MiB and more


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unpack(kernel: Path, cache: Path) -> Path:
    """The file to boot: `kernel` itself, or what is compressed in it, unpacked below `cache`.

    At once if it was unpacked before and has not changed since. Raises `SpecError` if it cannot be unpacked
    or holds no kernel, `NotFoundError`, `PermissionDeniedError`, and `ResourceError` when the disk is full.
    """
    with _open(kernel) as file:
        packed = _find(file, kernel)
        if packed is None:
            return kernel
        target = cache / f"{_identity(file)}.kernel"
        cache.mkdir(parents=True, exist_ok=True, mode=0o755)
        with _locked(cache / "lock"):
            if target.exists():
                os.utime(target)
            else:
                _write(packed, kernel, target)
                _prune(cache)
    # What was in a bzImage is ELF; what somebody compressed may be a bzImage.
    return target if packed.in_bzimage else unpack(target, cache)


class _Packed:
    """A compressed part of a file: `length` bytes from `offset`. Reads as a stream.

    The payload of a bzImage ends with its unpacked size, which gzip has anyway (linux, scripts/Makefile.lib).
    """

    def __init__(self, file: BinaryIO, name: str, offset: int, length: int, *, in_bzimage: bool) -> None:
        self.name = name
        self.in_bzimage = in_bzimage
        self.expected: int | None = None  # bytes unpacked, if that is known
        self._file = file
        self._at, self._end = offset, offset + length
        if in_bzimage and name:
            self.expected = int.from_bytes(os.pread(file.fileno(), 4, self._end - 4), "little")
            self._end -= 4 if name != "gzip" else 0

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        content = os.pread(self._file.fileno(), min(size, self._end - self._at), self._at)
        self._at += len(content)
        return content


def _find(file: BinaryIO, path: Path) -> _Packed | None:
    """What has to be unpacked, if anything."""
    size = os.fstat(file.fileno()).st_size
    head = os.pread(file.fileno(), HEAD, 0)
    if name := compression(head):
        return _Packed(file, name, 0, size, in_bzimage=False)
    if not is_bzimage(head) or len(head) < boot.SETUP_HEADER + sizeof(boot.SetupHeader):
        return None
    setup = boot.SetupHeader.from_buffer_copy(head, boot.SETUP_HEADER)
    if setup.version < boot.OLDEST_PROTOCOL or not setup.payload_length:
        return None  # what it lacks, the machine's own loader says
    offset = protected_mode(setup) + setup.payload_offset
    if setup.payload_length < 4 or offset + setup.payload_length > size:
        raise _wrong(
            path, f"is truncated: its payload ends at {offset + setup.payload_length}, it has {size} bytes"
        )
    magic = os.pread(file.fileno(), 16, offset)
    name = compression(magic)
    known = name in _UNPACKERS if name else magic.startswith(elf.MAGIC)
    if not known:
        return None  # it can unpack itself, in the guest
    return _Packed(file, name, offset, setup.payload_length, in_bzimage=True)


def _write(packed: _Packed, path: Path, target: Path) -> None:
    """Unpack to a new file and name it `target` when it is whole."""
    unpacker = _UNPACKERS.get(packed.name)
    if unpacker is None:
        raise _wrong(path, f"is compressed with {packed.name}, not {', '.join(filter(None, _UNPACKERS))}")
    for left in target.parent.glob(f"{_PREFIX}*"):  # by one that was killed: we hold the lock
        left.unlink()
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=_PREFIX)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:  # closed, and so on the disk or refused, before it gets its name
            head = _copy(unpacker(packed), file, packed, path)
        _check(head, packed, path)
        temporary.chmod(0o644)
        temporary.rename(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{path} cannot be unpacked into {target.parent}: {error.strerror}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _copy(stream: Iterator[bytes], file: BinaryIO, packed: _Packed, path: Path) -> bytes:
    """Write all of `stream`; returns its begin."""
    size, head = 0, b""
    try:
        for chunk in stream:
            size += len(chunk)
            if size > LIMIT:
                raise _wrong(path, f"unpacks to more than {LIMIT} bytes")
            head += chunk[: HEAD - len(head)]
            file.write(chunk)
    except (_Damaged, zlib.error, lzma.LZMAError, EOFError) as error:
        raise _wrong(path, f"is damaged: {packed.name}: {error}") from error
    if packed.expected not in (None, size):
        raise _wrong(path, f"is damaged: {size} bytes were unpacked, it says {packed.expected}")
    return head


def _check(head: bytes, packed: _Packed, path: Path) -> None:
    if head.startswith(elf.MAGIC) or (is_bzimage(head) and not packed.in_bzimage):
        return
    what = "a bzImage whose kernel is" if packed.in_bzimage else f"a {packed.name} of"
    raise _wrong(path, f"is {what} {describe(head)}")


def _prune(cache: Path) -> None:
    """Keep what was used last. Machines that run have copied theirs into their memory."""
    files = sorted(cache.glob("*.kernel"), key=lambda one: one.stat().st_mtime, reverse=True)
    for old in files[_KEPT:]:
        old.unlink(missing_ok=True)


def _identity(file: BinaryIO) -> str:
    """Of the file's content, without reading it: whoever writes to a file changes its ctime."""
    status = os.fstat(file.fileno())
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:32]


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"kernel {path}: there is no such file", field="boot.kernel") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"kernel {path} may not be read", field="boot.kernel") from error
    except (OSError, ValueError) as error:
        raise _wrong(path, f"cannot be opened: {error}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _wrong(path, "is not a regular file")
    with os.fdopen(fd, "rb") as file:
        yield file


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One unpacks, the others wait and find it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _wrong(path: Path, what: str) -> SpecError:
    return SpecError(f"kernel {path} {what}", field="boot.kernel", path=str(path))


class _Damaged(Exception):  # noqa: N818 - a word for what the file is
    """A stream is not what its format says."""


def _plain(source: _Reader) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


def _gzip(source: _Reader) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    while not decoder.eof:
        packed = decoder.unconsumed_tail or source.read(_CHUNK)
        if not packed:
            raise EOFError("it ends too early")
        yield decoder.decompress(packed, _CHUNK)


def _bzip2(source: _Reader) -> Iterator[bytes]:
    return _standard(source, bz2.BZ2Decompressor())


def _xz(source: _Reader) -> Iterator[bytes]:
    return _standard(source, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY))


def _lzma(source: _Reader) -> Iterator[bytes]:
    return _standard(source, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY))


def _standard(source: _Reader, decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> Iterator[bytes]:
    while not decoder.eof:
        packed = source.read(_CHUNK) if decoder.needs_input else b""
        if decoder.needs_input and not packed:
            raise EOFError("it ends too early")
        try:
            yield decoder.decompress(packed, _CHUNK)
        except OSError as error:  # which is how bz2 says that its input is no bzip2
            raise _Damaged(str(error)) from error


def _zstd(source: _Reader) -> Iterator[bytes]:
    import zstandard

    decoder = zstandard.ZstdDecompressor().decompressobj()
    while not decoder.eof:
        packed = source.read(_ZSTD_CHUNK)
        if not packed:
            raise EOFError("it ends too early")
        try:
            yield decoder.decompress(packed)
        except zstandard.ZstdError as error:
            raise _Damaged(str(error)) from error


def _lz4(source: _Reader) -> Iterator[bytes]:
    """The legacy frame that Linux uses: blocks of 8 MiB, each behind its length; the last may be shorter."""
    import lz4.block  # type: ignore[import-untyped]

    source.read(4)
    while prefix := source.read(4):
        length = int.from_bytes(prefix, "little")
        if not 0 < length <= 2 * _LZ4_BLOCK:
            raise _Damaged(f"a block of {length} bytes")
        block = source.read(length)
        if len(block) != length:
            raise EOFError("it ends too early")
        try:
            yield lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        except lz4.block.LZ4BlockError as error:
            raise _Damaged(str(error)) from error


def _lz4_frame(source: _Reader) -> Iterator[bytes]:
    import lz4.frame  # type: ignore[import-untyped]

    decoder = lz4.frame.LZ4FrameDecompressor()
    while not decoder.eof:
        packed = source.read(_CHUNK) if decoder.needs_input else b""
        if decoder.needs_input and not packed:
            raise EOFError("it ends too early")
        try:
            yield decoder.decompress(packed, _CHUNK)
        except RuntimeError as error:
            raise _Damaged(str(error)) from error


_UNPACKERS: dict[str, Callable[[_Reader], Iterator[bytes]]] = {
    "": _plain,
    "gzip": _gzip,
    "xz": _xz,
    "zstd": _zstd,
    "lz4": _lz4,
    "lz4 frame": _lz4_frame,
    "bzip2": _bzip2,
    "lzma": _lzma,
}
