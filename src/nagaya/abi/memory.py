"""Memory of other processes: advice and migration (asm-generic/mman-common.h, asm/unistd_64.h).

Man pages: process_madvise(2), madvise(2), migrate_pages(2). Functions raise `OSError`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection

NR_MIGRATE_PAGES = 256
NR_PROCESS_MADVISE = 440

MADV_COLD = 20
MADV_PAGEOUT = 21
MADV_COLLAPSE = 25

MAX_NODES = 1024  # MAX_NUMNODES of the largest kernels
_WORD = 64


class Iovec(ctypes.Structure):
    """struct iovec (bits/types/struct_iovec.h)."""

    _fields_ = (("base", ctypes.c_uint64), ("len", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def process_madvise(pidfd: int, address: int, length: int, advice: int) -> int:
    """Give advice on a range of another process's memory; returns how many bytes were advised."""
    piece = Iovec(address, length)
    return _call(NR_PROCESS_MADVISE, pidfd, ctypes.addressof(piece), 1, advice, 0)


def migrate_pages(pid: int, old: Collection[int], new: Collection[int]) -> int:
    """Move the pages of a process from NUMA nodes to others; returns how many could not be moved."""
    masks = _mask(old), _mask(new)
    return _call(NR_MIGRATE_PAGES, pid, MAX_NODES + 1, *(ctypes.addressof(mask) for mask in masks))


def _mask(nodes: Collection[int]) -> ctypes.Array[ctypes.c_uint64]:
    mask = (ctypes.c_uint64 * (MAX_NODES // _WORD))()
    for node in nodes:
        if not 0 <= node < MAX_NODES:
            raise OSError(22, f"no kernel has a NUMA node {node}")
        mask[node // _WORD] |= 1 << node % _WORD
    return mask


def _call(*words: int) -> int:
    result = int(_libc.syscall(*(ctypes.c_ulong(word) for word in words)))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
