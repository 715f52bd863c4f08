"""Terms of AML against the encodings of ACPI 6.5, chapter 20."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.hw import aml


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers_are_the_shortest_constants(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("dotted", "encoded"),
    [
        ("\\", b"\\\0"),
        ("RTC", b"RTC_"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PWRB", b"\\\x2e_SB_PWRB"),
        ("A.B.C", b"\x2f\x03A___B___C___"),
    ],
)
def test_paths(dotted: str, encoded: bytes) -> None:
    assert aml.path(dotted) == encoded


def test_ids_are_compressed_as_the_standard_says() -> None:
    assert aml.eisa_id("PNP0A08").hex() == "0c41d00a08"


def test_a_uuid_is_mixed_endian() -> None:
    uuid = aml.to_uuid("33db4d5b-1ff7-401c-9657-7441c03dd766")
    assert uuid[-16:].hex() == "5b4ddb33f71f1c4096577441c03dd766"


def decoded_length(term: bytes) -> tuple[int, int]:
    """PkgLength (20.2.4): value and size."""
    more = term[0] >> 6
    if not more:
        return term[0] & 0x3F, 1
    return (int.from_bytes(term[1 : 1 + more], "little") << 4 | term[0] & 0xF), 1 + more


@given(st.integers(0, 70_000))
def test_a_package_length_counts_itself_and_what_follows(size: int) -> None:
    term = aml.scope("\\", bytes(size))
    length, own = decoded_length(term[1:])
    assert length == len(term) - 1
    assert len(term) - 1 - own == size + 2
    # The shortest form that can say it.
    assert own == 1 or size + 2 + own - 1 >= (1 << 6 if own == 2 else 1 << 4 + 8 * (own - 2))


def test_what_no_length_can_say_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than a package length"):
        aml.scope("\\", bytes(1 << 28))
