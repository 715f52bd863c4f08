"""Memory that may grow: what a machine boots with, and what it may plug."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.knobs import Memory
from nagaya.resources.hotmemory import MIN_BLOCK, block_of, hot_memory, present
from nagaya.spec import MIB

GIB = 1024 * MIB


def test_a_machine_without_a_maximum_has_all_of_its_memory_from_the_beginning() -> None:
    assert hot_memory(Memory(size=64 * MIB)) is None


@given(blocks=st.integers(8, 2**12), more=st.integers(0, 2**22))
def test_what_is_there_and_what_may_come_add_up(blocks: int, more: int) -> None:
    block = block_of(more * MIN_BLOCK)
    memory = Memory(size=blocks * block, max=(blocks + more * MIN_BLOCK // block) * block)
    hot = hot_memory(memory)
    assert hot is not None
    assert hot.boot + hot.size == memory.max
    assert hot.boot + hot.requested == memory.size
    assert hot.size % hot.block == hot.requested % hot.block == hot.start % hot.block == 0
    assert 0 < hot.size // hot.block <= 65536
    assert present(memory, hot.size, hot.requested) == memory.size


def test_a_machine_that_begins_with_all_that_it_may_have_plugs_the_last_block() -> None:
    hot = hot_memory(Memory(size=64 * MIB, max=64 * MIB))
    assert hot is not None
    assert (hot.boot, hot.size, hot.requested) == (62 * MIB, 2 * MIB, 2 * MIB)


@pytest.mark.parametrize(
    ("size", "block"), [(0, 2), (GIB, 2), (128 * GIB, 2), (128 * GIB + MIN_BLOCK, 4), (2**46, 1024)]
)
def test_blocks_are_of_2_mib_up_to_128_gib(size: int, block: int) -> None:
    assert block_of(size) == block * MIB
