"""The host's CPUs and NUMA nodes, as sysfs tells them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MOST_CPUS = 4096  # as many as a Linux kernel can be built for
_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node: its CPUs, its memory and what of that is free, in bytes."""

    id: int
    cpus: tuple[int, ...]
    memory: int
    free: int


def nodes(root: Path = _NODES) -> list[Node]:
    """The nodes that are online; a host without NUMA has one, with all CPUs."""
    found = [_node(directory) for directory in root.glob("node[0-9]*") if directory.is_dir()]
    return sorted(found, key=lambda node: node.id) or [_only_node()]


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPUs of a list as the kernel writes it, `0-3,8`. Raises `ValueError` that shows what is allowed."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is not a list of CPUs; write for example 0-3,8")
        begin, end = int(first), int(last or first)
        if end < begin or end >= MOST_CPUS:
            raise ValueError(f"{part!r}: CPUs are counted from 0 up, below {MOST_CPUS}")
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest list: 0, 1, 2, 3, 8 is `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _node(directory: Path) -> Node:
    text = (directory / "cpulist").read_text().strip()
    facts = {}
    for line in (directory / "meminfo").read_text().splitlines():
        words = line.split()  # Node 0 MemTotal:  24576000 kB
        if len(words) >= 4 and words[3].isdigit():
            facts[words[2].rstrip(":")] = int(words[3]) * 1024
    cpus = parse_cpus(text) if text else ()
    return Node(
        int(directory.name.removeprefix("node")), cpus, facts.get("MemTotal", 0), facts.get("MemFree", 0)
    )


def _only_node() -> Node:
    pages, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    size = os.sysconf("SC_PAGE_SIZE")
    return Node(0, tuple(sorted(os.sched_getaffinity(0))), pages * size, free * size)
