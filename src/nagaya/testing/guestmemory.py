"""How much of a guest's memory the host holds, by the host's own counters."""

from __future__ import annotations

import os
from pathlib import Path

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
