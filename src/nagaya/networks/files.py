"""Files that the daemon writes and a program without privileges reads."""

from __future__ import annotations

import os
from pathlib import Path


def write_if_changed(path: Path, text: str, gid: int) -> bool:
    """Replace `path` as a whole, for the owner and the group `gid` to read. Whether it was different."""
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o640)
        if os.geteuid() == 0:
            os.fchown(descriptor, 0, gid)
        file.write(text)
    fresh.replace(path)
    return True


def make_directory(path: Path, gid: int) -> None:
    """A directory that the group `gid` may read and nobody else."""
    path.mkdir(mode=0o750, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, 0, gid)
    path.chmod(0o750)
