"""Registers as data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.abi.registers import Bits, Register, bit


class Status(Register):
    """An example."""

    READY = bit(0)
    COUNT = Bits(4, 11)
    ERROR = bit(31)


def test_fields_decode() -> None:
    status = Status(0x8000_0AB1)
    assert (status.READY, status.COUNT, status.ERROR) == (1, 0xAB, 1)


def test_it_prints_what_is_set() -> None:
    assert str(Status(0xAB1)) == "0xab1 (READY COUNT=0xab)"
    assert str(Status(0)) == "0x0"


def test_the_declaration_has_a_mask() -> None:
    assert Status.COUNT.mask == 0xFF0


@given(st.integers(0, 1), st.integers(0, 255))
def test_composing_and_decoding_are_inverse(ready: int, count: int) -> None:
    status = Status.of(READY=ready, COUNT=count)
    assert (ready, count, 0) == (status.READY, status.COUNT, status.ERROR)


@given(st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_replacing_a_field_leaves_the_rest(value: int, count: int) -> None:
    changed = Status(value).replace(COUNT=count)
    assert count == changed.COUNT
    assert changed & ~Status.COUNT.mask == value & ~Status.COUNT.mask


@pytest.mark.parametrize("fields", [{"COUNT": 256}, {"COUNT": -1}, {"NONE": 1}])
def test_what_does_not_fit_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="has no field"):
        Status.of(**fields)
