"""How much of a guest's memory the host holds, by the host's own counters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

_BLOCK = 512  # bytes, of st_blocks
_LEAST = 16 << 20  # bytes; a smaller file is no guest's memory


def held_bytes(pid: int) -> int:
    """Bytes of host memory behind the guest memory of the machine whose process is `pid`.

    Its memory is one file without a name (of User-mode Linux on a tmpfs, of the kvm engine a memfd), the
    largest that the process or one of its children has open.
    """
    found: dict[tuple[int, int], os.stat_result] = {}
    for process in (pid, *_children(pid)):
        for fd in Path(f"/proc/{process}/fd").iterdir():
            try:
                stat = fd.stat()
            except OSError:
                continue
            if stat.st_nlink == 0 and stat.st_size >= _LEAST:
                found[stat.st_dev, stat.st_ino] = stat
    if not found:
        raise LookupError(f"process {pid} has no guest memory")
    return max(found.values(), key=lambda stat: stat.st_size).st_blocks * _BLOCK


def _children(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += [int(child) for child in (task / "children").read_text().split()]
    return children


class Stand:
    """A process with `size` bytes of memory as a guest's: a sealed file without a name, `touched` in front.

    A context manager; each page that is touched holds its number.
    """

    def __init__(self, size: int, touched: int) -> None:
        ask, self._asked = os.pipe()
        self._answer, answer = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", _STAND, str(size), str(touched), str(ask), str(answer)]
        self._process = subprocess.Popen(command, pass_fds=(ask, answer))
        os.close(ask)
        os.close(answer)
        self.pid = self._process.pid
        os.read(self._answer, 1)

    def holds(self) -> bool:
        """Whether all pages still hold their numbers."""
        os.write(self._asked, b"?")
        return os.read(self._answer, 1) == b"y"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._asked)
        os.close(self._answer)


_STAND = """
import mmap, os, struct, sys
size, touched, ask, answer = map(int, sys.argv[1:])
file = os.memfd_create("guest-ram")
os.ftruncate(file, size)
memory = mmap.mmap(file, size)
for page in range(0, touched, 4096):
    struct.pack_into("<Q", memory, page, page + 1)
os.write(answer, b".")
while os.read(ask, 1):
    well = all(struct.unpack_from("<Q", memory, page)[0] == page + 1 for page in range(0, touched, 4096))
    os.write(answer, b"y" if well else b"n")
"""
