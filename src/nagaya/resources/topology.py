"""The host's CPUs and NUMA nodes, as sysfs tells them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nagaya.units import parse_cpus

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
