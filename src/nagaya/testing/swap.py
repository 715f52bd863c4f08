"""Swap for a test, in compressed memory, taken away again whatever happens. One test at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CONTROL = Path("/sys/class/zram-control")


@contextlib.contextmanager
def swap(size: int) -> Iterator[str]:
    """Swap of `size` bytes on a zram device of our own; its path. Needs root and the kernel's zram."""
    lock = os.open(CONTROL, os.O_RDONLY)  # swap is the whole host's: others that test with it wait
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number = int((CONTROL / "hot_add").read_text())
        device = f"/dev/zram{number}"
        try:
            Path(f"/sys/block/zram{number}/disksize").write_text(str(size))
            subprocess.run(["mkswap", device], check=True, capture_output=True)
            subprocess.run(["swapon", device], check=True)
            try:
                yield device
            finally:
                subprocess.run(["swapoff", device], check=True)
        finally:
            (CONTROL / "hot_remove").write_text(str(number))
    finally:
        os.close(lock)
