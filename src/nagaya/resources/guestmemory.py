"""Where a machine's guest memory is, by the host's own counters: in memory, swapped out, huge, on which node.

It is one file without a name, mapped by the machine's process: a memfd with the engine `kvm`, a file of a
private tmpfs with `uml`, whose children map pieces of it too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nagaya.closing import Closing
from nagaya.errors import NotFoundError, UnavailableError

LEAST = 4 * 2**20  # bytes; a smaller mapping is no guest's memory
_PAGE = 4096
_BLOCK = 512  # bytes, of st_blocks
_PROC = Path("/proc")
_MAPS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (....) [0-9a-f]+ \S+ (\d+) *(.*)$")  # proc_pid_maps(5)
_CHILDREN = 16  # of a machine's process that are looked at


@dataclass(frozen=True, slots=True)
class Span:
    """The largest mapping of a process that is shared and has a file without a name: addresses in bytes."""

    pid: int
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Where:
    """Bytes of guest memory: `resident` in the host's memory, `swapped` out, `huge` mapped by huge pages.

    `nodes`: how many the machine's own process has mapped of each NUMA node.
    """

    resident: int
    swapped: int
    huge: int
    nodes: Mapping[int, int] = field(default_factory=dict)


class GuestMemory(Closing):
    """The guest memory of the machine whose process is `pid`. A context manager."""

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        """Raises `NotFoundError` if the process has none, `UnavailableError` if we may not look."""
        self._proc = proc
        self.fd = -1
        self.span = find(pid, proc)
        path = proc / str(self.span.pid) / "map_files" / f"{self.span.start:x}-{self.span.end:x}"
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UnavailableError(
                f"the memory of process {pid} cannot be looked at: {error.strerror}",
                hint="this needs a daemon that is root's",
            ) from error

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def where(self) -> Where:
        """Where it is now. Raises `NotFoundError` if the process has ended."""
        facts = smaps(_read(self._proc, self.span.pid, "smaps"), self.span.start)
        swapped = facts.get("Swap", 0)
        held = self.held()
        nodes = numa(_read(self._proc, self.span.pid, "numa_maps"), self.span.start)
        return Where(max(0, held - swapped), swapped, facts.get("ShmemPmdMapped", 0), nodes)

    def held(self) -> int:
        """Bytes that are not holes, in the host's memory or swapped out."""
        return os.fstat(self.fd).st_blocks * _BLOCK

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Offsets and lengths of what the file holds, swapped out or not; the rest are holes."""
        at = 0
        while at < self.span.size:
            try:
                begin = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing follows
                return
            at = os.lseek(self.fd, begin, os.SEEK_HOLE)
            yield begin, at - begin


def find(pid: int, proc: Path = _PROC) -> Span:
    """The guest memory of a machine's process, or of one of its children. Raises `NotFoundError`."""
    for process in (pid, *_children(pid, proc)):
        found = list(_spans(process, _read(proc, process, "maps", missing="")))
        if found:
            return max(found, key=lambda span: span.size)
    raise NotFoundError(f"process {pid} has no guest memory: it has ended, or is only just beginning")


def smaps(text: str, start: int) -> dict[str, int]:
    """The sizes of the mapping that begins at `start`, in bytes, from the text of a smaps file."""
    found: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        mapping = _MAPS.match(line)
        if mapping:
            inside = int(mapping[1], 16) == start
            continue
        name, _, value = line.partition(":")
        number = value.removesuffix("kB").strip()
        if inside and number.isascii() and number.isdigit():
            found[name] = int(number) * 1024
    return found


def numa(text: str, start: int) -> dict[int, int]:
    """Bytes on each node of the mapping that begins at `start`, from the text of a numa_maps file."""
    for line in text.splitlines():
        words = line.split()
        if not words or words[0] != f"{start:x}":
            continue
        pairs = dict(word.split("=", 1) for word in words if "=" in word)
        unit = _number(pairs.get("kernelpagesize_kB", "")) or _PAGE // 1024
        counts = {name[1:]: _number(value) for name, value in pairs.items() if name[:1] == "N"}
        return {int(node): count * unit * 1024 for node, count in counts.items() if node.isdigit() and count}
    return {}


def _spans(pid: int, text: str) -> Iterator[Span]:
    for line in text.splitlines():
        found = _MAPS.match(line)
        if found and found[3].endswith("s") and found[5].endswith(" (deleted)"):
            span = Span(pid, int(found[1], 16), int(found[2], 16))
            if span.size >= LEAST:
                yield span


def _children(pid: int, proc: Path) -> list[int]:
    children = _read(proc, pid, f"task/{pid}/children", missing="").split()
    return [int(child) for child in children[:_CHILDREN]]


def _read(proc: Path, pid: int, name: str, missing: str | None = None) -> str:
    try:
        return (proc / str(pid) / name).read_text(errors="replace")
    except OSError as error:
        if missing is not None:
            return missing
        raise NotFoundError(f"process {pid} has no {name}: {error.strerror}") from error


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
