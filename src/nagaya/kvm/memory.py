"""Guest RAM: one sealed memfd, mapped once, seen by the guest in one or two ranges."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

from nagaya.closing import Closing
from nagaya.errors import ResourceError, UsageError
from nagaya.hw import layout
from nagaya.hw.wires import RamRegion
from nagaya.units import format_size

HUGE_PAGE = 2 * layout.MIB

# linux/fcntl.h, linux/memfd.h, linux/mempolicy.h; Python 3.11 lacks some of them
_MFD_HUGE_2MB = 21 << 26
_NR_MBIND = 237
_MPOL_BIND = 2
_MAX_NODES = 1024

_libc = ctypes.CDLL(None, use_errno=True)


class GuestMemory(Closing):
    """`size` bytes of RAM for one machine, and `hot` that it plugs. A context manager.

    Implements `nagaya.hw.wires.Ram`.

    The file can be neither shrunk nor grown: whoever maps it (the plane) never meets a SIGBUS. Pages come
    when they are first touched. Core dumps leave them out.
    """

    def __init__(
        self, size: int, *, hot: int = 0, huge_pages: bool = False, numa_node: int | None = None
    ) -> None:
        """Sizes are multiples of 4 KiB, with `huge_pages` of 2 MiB. Raises `UsageError`, `ResourceError`."""
        unit = HUGE_PAGE if huge_pages else layout.PAGE
        if size < unit or size % unit or hot % unit:
            raise UsageError(f"guest memory of {size} bytes is no multiple of {format_size(unit)}")
        self.size = size
        self.fd = _create(size + hot, huge_pages)
        try:
            self._mapping = _map(self.fd, size + hot, huge_pages)
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise
        self._bytes = memoryview(self._mapping)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))
        self._mapping.madvise(mmap.MADV_DONTDUMP)
        places = zip(layout.ram_ranges(size), (0, layout.LOW_RAM_END), strict=False)
        parts = [(address, length, offset) for (address, length), offset in places]
        if hot:
            parts.append((layout.hot_start(size), hot, size))
        self.regions = tuple(
            RamRegion(address, length, self.fd, offset, host + offset) for address, length, offset in parts
        )
        if numa_node is not None:
            try:
                _bind_to_node(host, size + hot, numa_node)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Unmap and close. Raises `BufferError` while a `view` is in use."""
        if self.fd >= 0:
            self._bytes.release()
            self._mapping.close()
            os.close(self.fd)
            self.fd = -1

    def view(self, address: int, size: int) -> memoryview:
        """The guest's own bytes, writable. Raises `UsageError` if they are not all RAM, in one piece."""
        for region in self.regions:
            at = address - region.address
            if at >= 0 and size >= 0 and at + size <= region.size:
                return self._bytes[region.offset + at : region.offset + at + size]
        raise UsageError(
            f"{size:#x} bytes at {address:#x} are not in the guest's {format_size(self.size)} of RAM"
        )

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at guest-physical `address`. Raises `UsageError` if they are not all RAM."""
        return bytes(self.view(address, size))

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        """Store `content` at `address`. Raises `UsageError` if it does not all fall into RAM."""
        self.view(address, len(content))[:] = content


def _create(size: int, huge_pages: bool) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge_pages:
        flags |= os.MFD_HUGETLB | _MFD_HUGE_2MB
    try:
        fd = os.memfd_create("guest-ram", flags)
    except OSError as error:
        raise ResourceError(f"no memory file: {error.strerror}", hint=_huge_hint(size, huge_pages)) from error
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise ResourceError(
            f"{format_size(size)} of guest memory cannot be had: {error.strerror}",
            hint="see the limit on file sizes (ulimit -f) and the machine's `memory`",
        ) from error
    return fd


def _map(fd: int, size: int, huge_pages: bool) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        raise ResourceError(
            f"{format_size(size)} of guest memory cannot be mapped: {error.strerror}",
            hint=_huge_hint(size, huge_pages) or "lower the machine's `memory`, or raise ulimit -v",
        ) from error


def _huge_hint(size: int, huge_pages: bool) -> str:
    if not huge_pages:
        return ""
    return f"reserve {size // HUGE_PAGE} huge pages of 2 MiB: sysctl vm.nr_hugepages"


def _bind_to_node(host: int, size: int, node: int) -> None:
    """mbind(2): a shared mapping's policy belongs to the file, so the plane's touches follow it too."""
    if not 0 <= node < _MAX_NODES:
        raise UsageError(f"NUMA node {node} does not exist")
    mask = (ctypes.c_ulong * (_MAX_NODES // 64))()
    mask[node // 64] = 1 << node % 64
    arguments = (_NR_MBIND, host, size, _MPOL_BIND, ctypes.addressof(mask), _MAX_NODES + 1, 0)
    if _libc.syscall(*(ctypes.c_ulong(word) for word in arguments)) == -1:
        number = ctypes.get_errno()
        raise ResourceError(
            f"guest memory cannot be bound to NUMA node {node}: {os.strerror(number)}",
            hint="`numactl --hardware` lists the nodes",
        )
