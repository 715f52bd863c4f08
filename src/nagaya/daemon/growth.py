"""Whether, and how, a disk grows."""

from __future__ import annotations

import os
from pathlib import Path

from nagaya.errors import UnsupportedError
from nagaya.images.chain import DiskFiles
from nagaya.units import human_size


def grows(key: str, files: DiskFiles, size: int) -> bool:
    """Whether the disk `key` has less than `size` bytes. Raises `UnsupportedError` if it has more."""
    record = files.record()
    return _grows(key, record.layers[record.top].size, size)


def grow_raw(key: str, path: Path, size: int) -> None:
    """Make the raw file at `path` as large as `size`; a block device must be so already.

    Raises `UnsupportedError` for a disk that would shrink, and a device that would have to grow.
    """
    with path.open("rb") as file:
        now_size = file.seek(0, os.SEEK_END)
    if not _grows(key, now_size, size):
        return
    if not path.is_file():
        raise UnsupportedError(
            f"disk {key} is the device {path}, which has {human_size(now_size)}",
            hint=f"grow it (lvextend, for instance), then say its size: nagaya disk resize {key} SIZE",
            disk=key,
        )
    os.truncate(path, size)


def _grows(key: str, now_size: int, size: int) -> bool:
    if size < now_size:
        raise UnsupportedError(
            f"disk {key} has {human_size(now_size)} and cannot shrink to {human_size(size)}",
            hint="its content would be cut; make a smaller disk and copy the files inside a guest",
            disk=key,
        )
    return size > now_size
