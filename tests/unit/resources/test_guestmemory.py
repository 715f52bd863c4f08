"""Guest memory is found, and where it is is read from the kernel's files, whatever stands in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import NotFoundError
from nagaya.resources.guestmemory import GuestMemory, Span, find, numa, smaps
from nagaya.testing.guestmemory import Stand

MIB = 2**20
MAPS = """\
60000000-60100000 r-xs 00000000 00:1a 7 /ram/vm_file-a1 (deleted)
61000000-71000000 rw-s 01000000 00:1a 7 /ram/vm_file-a1 (deleted)
71000000-91000000 rw-p 00000000 00:1b 8 /other (deleted)
91000000-b1000000 rw-s 00000000 00:1b 8 /has/a/name
"""


def put(proc: Path, pid: int, **files: str) -> None:
    (proc / str(pid) / f"task/{pid}").mkdir(parents=True)
    for name, text in files.items():
        path = f"task/{pid}/{name}" if name == "children" else name
        (proc / str(pid) / path).write_text(text)


def test_it_is_the_largest_shared_mapping_of_a_file_without_a_name(tmp_path: Path) -> None:
    put(tmp_path, 5, maps=MAPS)
    assert find(5, tmp_path) == Span(5, 0x61000000, 0x71000000)


def test_it_may_be_a_childs(tmp_path: Path) -> None:
    put(tmp_path, 5, maps="", children="6 7 ")
    put(tmp_path, 7, maps=MAPS)
    assert find(5, tmp_path).pid == 7


def test_a_process_without_any_is_said(tmp_path: Path) -> None:
    put(tmp_path, 5, maps="garbage\n", children="")
    with pytest.raises(NotFoundError, match="process 5 has no guest memory"):
        find(5, tmp_path)


def test_sizes_are_those_of_the_mapping() -> None:
    first, second, *_ = MAPS.splitlines()
    text = f"{first}\nSwap: 8 kB\n{second}\nRss:  4 kB\nSwap:   12 kB\nVmFlags: rd\n"
    assert smaps(text, 0x61000000) == {"Rss": 4096, "Swap": 12288}
    assert smaps(text, 0x62000000) == {}


def test_nodes_are_those_of_the_mapping() -> None:
    text = "60000000 default\n61000000 bind:0 file=/x\\040(deleted) N0=3 N1=2 kernelpagesize_kB=2048\n"
    assert numa(text, 0x61000000) == {0: 6 * MIB, 1: 4 * MIB}
    assert numa(text, 0x60000000) == {}


@given(st.text(), st.integers(0, 2**48))
def test_no_text_breaks_them(text: str, start: int) -> None:
    smaps(text, start)
    numa(text, start)
    numa(f"{start:x} {text}", start)


def test_a_real_process_has_what_it_touched() -> None:
    with Stand(16 * MIB, touched=4 * MIB) as stand, GuestMemory(stand.pid) as memory:
        assert memory.span.size == 16 * MIB
        assert list(memory.pieces()) == [(0, 4 * MIB)]
        where = memory.where()
        assert (where.resident, where.swapped, where.huge, sum(where.nodes.values())) == (
            4 * MIB,
            0,
            0,
            4 * MIB,
        )


def test_of_a_process_that_has_ended_nothing_is_told() -> None:
    with Stand(16 * MIB, touched=0) as stand:
        memory = GuestMemory(stand.pid)
    with memory, pytest.raises(NotFoundError):
        memory.where()
    with pytest.raises(NotFoundError):
        GuestMemory(os.getpid())
