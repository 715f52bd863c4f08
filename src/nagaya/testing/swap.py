"""Swap for a test or a bench, taken away again whatever happens. One at a time on a host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CONTROL = Path("/sys/class/zram-control")
_SHARED = Path("/sys/kernel/mm")  # swap is the whole host's: others that test with it wait for its lock


@contextlib.contextmanager
def swap(size: int) -> Iterator[str]:
    """Swap of `size` bytes on a zram device of our own; its path. Needs root and the kernel's zram."""
    with _locked():
        number = int((CONTROL / "hot_add").read_text())
        device = f"/dev/zram{number}"
        try:
            Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
            with _swap_on(device):
                yield device
        finally:
            (CONTROL / "hot_remove").write_text(str(number))


@contextlib.contextmanager
def swap_file(size: int, path: Path) -> Iterator[Path]:
    """Swap of `size` bytes in a new file at `path`, on the disk that is there. Needs root."""
    with _locked():
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # swap needs a file without holes
            with _swap_on(str(path)):
                yield path
        finally:
            os.close(file)
            path.unlink()


@contextlib.contextmanager
def _swap_on(path: str) -> Iterator[None]:
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    subprocess.run(["swapon", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    lock = os.open(_SHARED, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
