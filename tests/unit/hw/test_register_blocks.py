"""Blocks of declared registers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.abi.registers import Bits, Register, bit
from nagaya.errors import UsageError
from nagaya.hw.registers import RegisterAt, RegisterBlock, RegisterMap


class Control(Register):
    GO = bit(0)
    MODE = Bits(4, 7)


ID = RegisterAt("id", 0, 2, Register, reset=0x1234)
CONTROL = RegisterAt("control", 2, 1, Control, reset=0x10, writable=0xF1)
EVENTS = RegisterAt("events", 4, 4, Register, clears=0xFFFF)
MAP = RegisterMap(16, (ID, CONTROL, EVENTS))


def test_a_guest_changes_what_it_may() -> None:
    block = RegisterBlock(MAP)
    block.write(0, 4, 0xFFFFFFFF)
    assert block.read(0, 4) == 0x00F11234
    assert block[CONTROL].MODE == 15
    block[EVENTS] = 0x10F0F
    block.write(4, 1, 0x05)
    assert block[EVENTS] == 0x10F0A
    block.write(4, 8, (1 << 64) - 1)
    assert block[EVENTS] == 0x10000
    block.reset()
    assert block.read(0, 8) == 0x00101234


def test_hooks_run_when_their_register_is_touched() -> None:
    block = RegisterBlock(MAP)
    changes: list[tuple[Control, Control]] = []
    block.on_write(CONTROL, lambda before: changes.append((before, block[CONTROL])))
    block.on_read(EVENTS, lambda: block.__setitem__(EVENTS, block[EVENTS] + 1))
    block.write(0, 2, 0)
    block.write(2, 1, 0x21)
    block.write(0, 8, 0x310000)
    assert changes == [(0x10, 0x21), (0x21, 0x31)]
    assert changes[1][1].GO
    assert [block.read(0, 4) >> 16, block.read(6, 2), block.read(4, 1)] == [0x31, 0, 2]


def test_presets_and_allowances_are_one_blocks_own() -> None:
    one, other = RegisterBlock(MAP), RegisterBlock(MAP)
    one.preset(ID, 7)
    one.allow(ID, 0xFF00)
    one.write(0, 2, 0xFFFF)
    other.write(0, 2, 0xFFFF)
    assert (one[ID], other[ID]) == (0xFF07, 0x1234)
    one.reset()
    assert one[ID] == 7


def test_it_prints_itself() -> None:
    assert str(RegisterBlock(MAP)).splitlines()[1].split() == ["0x002", "control", "0x10", "(MODE=0x1)"]


@pytest.mark.parametrize(
    "wrong", [RegisterAt("a", 1, 2, Register), RegisterAt("b", 15, 2, Register)], ids=["overlaps", "beyond"]
)
def test_a_wrong_declaration_is_refused(wrong: RegisterAt[Register]) -> None:
    with pytest.raises(UsageError, match="does not fit or overlaps"):
        RegisterMap(16, (ID, wrong))


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from((1, 2, 3, 4, 8)), st.integers(0)), max_size=30))
def test_any_access_keeps_what_is_fixed(accesses: list[tuple[int, int, int]]) -> None:
    block = RegisterBlock(MAP)
    for offset, size, value in accesses:
        block.write(offset, size, value & ((1 << (8 * size)) - 1))
        assert 0 <= block.read(offset, size) < 1 << (8 * size)
    assert block[ID] == 0x1234
    assert block[CONTROL] & ~0xF1 == 0
    assert block.read(8, 8) == 0
