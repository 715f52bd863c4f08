"""CPU lists and NUMA nodes, from trees of plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.resources.topology import Node, nodes
from nagaya.units import format_cpus, parse_cpus


def host(root: Path, *cpulists: str) -> Path:
    """A host whose nodes have these CPUs, and 1000 KiB of memory."""
    for number, cpus in enumerate(cpulists):
        directory = root / f"node{number}"
        directory.mkdir()
        (directory / "cpulist").write_text(f"{cpus}\n")
        (directory / "meminfo").write_text(
            f"\nNode {number} MemTotal:       1000 kB\nNode {number} MemFree:         300 kB\n"
        )
    (root / "possible").write_text("0-1\n")
    return root


def test_the_nodes_of_a_host(tmp_path: Path) -> None:
    assert nodes(host(tmp_path, "0-3,8", "4-7", "")) == [
        Node(0, (0, 1, 2, 3, 8), 1024000, 307200),
        Node(1, (4, 5, 6, 7), 1024000, 307200),
        Node(2, (), 1024000, 307200),
    ]


def test_a_host_without_numa_has_one_node_with_all_cpus(tmp_path: Path) -> None:
    (only,) = nodes(tmp_path)
    assert (only.id, only.cpus) == (0, tuple(sorted(os.sched_getaffinity(0))))
    assert 0 < only.free <= only.memory


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "0,,2", "5000", "-1"])
def test_what_is_no_list_of_cpus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="CPUs"):
        parse_cpus(text)


@given(st.sets(st.integers(0, 4095), min_size=1, max_size=40))
def test_lists_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == tuple(sorted(cpus))
