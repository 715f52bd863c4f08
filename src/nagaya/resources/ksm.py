"""Whether the kernel can merge equal pages of guests (KSM, Documentation/mm/ksm.rst): found by trying.

It merges private anonymous memory only. A guest's memory is shared with the plane, which serves its devices,
so no kernel so far merges it (docs/decisions/0022-equal-pages.md); one that does would show here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from pathlib import Path

_SIZE = 2**20
_SMAPS = Path("/proc/self/smaps")
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


def merges_guests() -> bool:
    """Whether memory such as a guest's, a shared file's, becomes mergeable when the kernel is asked."""
    fd = os.memfd_create("merge-probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _SIZE)
        with mmap.mmap(fd, _SIZE, mmap.MAP_SHARED) as memory:
            return _becomes_mergeable(memory)
    finally:
        os.close(fd)


def merges_at_all() -> bool:
    """Whether private memory does: whether this kernel has KSM."""
    with mmap.mmap(-1, _SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        return _becomes_mergeable(memory)


def vm_flags(smaps: str, address: int) -> list[str]:
    """The flags of the mapping at `address`, two letters each (proc_pid_smaps(5))."""
    inside = False
    for line in smaps.splitlines():
        bounds = _RANGE.match(line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def _becomes_mergeable(memory: mmap.mmap) -> bool:
    try:
        memory.madvise(mmap.MADV_MERGEABLE)
    except OSError:  # EINVAL: a kernel without KSM
        return False
    first = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(first)
    del first
    return "mg" in vm_flags(_SMAPS.read_text(), address)
