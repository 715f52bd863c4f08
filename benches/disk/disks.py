"""What is served: the same disk in the plane's words and in qemu-storage-daemon's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nagaya import _core

# All of a 2 GiB disk's L2 entries, which qemu-storage-daemon would otherwise read again and again.
L2_CACHE = 8 << 20


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk, and how each backend is told of it."""

    files: tuple[Path, ...]  # top first
    layers: tuple[dict[str, Any], ...]  # as in the plane's configuration
    blockdev: str  # of qemu-storage-daemon, whose node is "disk"
    direct: bool = True


def raw(file: Path, direct: bool) -> Disk:
    """The file as it is; past the page cache if `direct`."""
    return Disk((file,), ({"format": "raw"},), f"driver=file,node-name=disk,{_file(file, direct)}", direct)


def null(size: int) -> Disk:
    """A disk of `size` bytes that answers at once and moves nothing."""
    model = {"format": "null", "model": {"size": size}}
    return Disk((), (model,), f"driver=null-co,node-name=disk,size={size},read-zeroes=off")


def qcow2(file: Path) -> Disk:
    """One qcow2 file."""
    return Disk((file,), ({"format": "qcow2"},), _qcow2(file))


def overlay(top: Path, base: Path) -> Disk:
    """A qcow2 on a raw base; the base through the page cache, which all machines share."""
    blockdev = f"{_qcow2(top)},backing.driver=raw,backing.file.driver=file"
    blockdev += f",backing.file.filename={base},backing.file.aio=io_uring,backing.file.cache.direct=off"
    return Disk((top, base), ({"format": "qcow2"}, {"format": "raw"}), blockdev)


@contextmanager
def written_qcow2(path: Path, size: int) -> Iterator[Disk]:
    """A qcow2 of `size` bytes all of whose clusters are there; removed afterwards."""
    _core.qcow2_create(str(path), size, "", "")
    try:
        # qemu-io writes less than 2 GiB at once.
        step = 1 << 30
        writes = [f"write {start} {min(step, size - start)}" for start in range(0, size, step)]
        commands = [word for write in writes for word in ("-c", write)]
        subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(path)], check=True, capture_output=True)
        yield qcow2(path)
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def fresh_overlay(path: Path, base: Path) -> Iterator[Disk]:
    """An overlay of `base` in which nothing has been written; removed afterwards."""
    _core.qcow2_create(str(path), base.stat().st_size, str(base), "raw")
    try:
        yield overlay(path, base)
    finally:
        path.unlink()


def _file(path: Path, direct: bool) -> str:
    return f"filename={path},aio=io_uring,cache.direct={'on' if direct else 'off'}"


def _qcow2(path: Path) -> str:
    file = f"file.driver=file,file.filename={path},file.aio=io_uring,file.cache.direct=on"
    return f"driver=qcow2,node-name=disk,cache.direct=on,l2-cache-size={L2_CACHE},{file}"
