"""Directories for builds that a kill at any moment cannot turn into a mess, and locks between processes.

<root>/work/<random>/   a build in progress, with an flock on its `lock`; without the lock a leftover
<root>/locks/<key>      held by the one who builds what `key` stands for
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nagaya.paths import Paths

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Work:
    """A directory for a build. Programs that work in it inherit `lock_fd`: while one lives, it is in use."""

    path: Path
    lock_fd: int

    @property
    def log(self) -> Path:
        """Output of the build's programs."""
        return self.path / "log"


class WorkArea:
    """Work directories and locks below `root`, which is made when needed, for its owner only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        """`root`/`name`, made if missing."""
        path = self.root / name
        if not path.is_dir():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(exist_ok=True, mode=0o700)
        return path

    @contextmanager
    def work(self) -> Iterator[Work]:
        """A new directory, gone afterwards. Removes what killed builds left first."""
        with self.locked("work"):
            self._sweep()
            path = Path(tempfile.mkdtemp(dir=self.directory("work")))
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield Work(path, lock)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)

    @contextmanager
    def locked(self, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Only one at a time, in all processes, is inside for each `key`.

        `waiting` is called again and again until it is our turn; what it raises ends the wait.
        """
        lock = os.open(self.directory("locks") / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(lock):
                waiting()
                time.sleep(_POLL_S)
            yield
        finally:
            os.close(lock)

    def sweep(self) -> None:
        """Remove what killed builds left. Where nothing was ever built, nothing is made."""
        if (self.root / "work").is_dir():
            with self.locked("work"):
                self._sweep()

    def _sweep(self) -> None:
        for path in self.directory("work").iterdir():
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if _try_lock(lock):
                shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def areas(paths: Paths) -> tuple[WorkArea, WorkArea]:
    """Where images are built and imported, and where kernels are built."""
    return WorkArea(paths.images), WorkArea(paths.cache / "kernel-build")


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a crash leaves the old text or the new, never half of it."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)
