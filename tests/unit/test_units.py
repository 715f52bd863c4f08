"""Quantities as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.units import format_size, human_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("10GB", 10**10),
        ("4k", None),
        ("4K", 4096),
        (" 7 B ", 7),
        ("0", 0),
        (65536, 65536),
        ("0.5KiB", 512),
    ],
)
def test_a_size_is_bytes(text: str | int, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lots", "'lots' is not a size; write for example 512MiB"),
        ("", "is not a size"),
        ("-1MiB", "is not a size"),
        ("1e3", "is not a size"),
        ("0.3B", "not a whole number of bytes"),
        ("9999999999TiB", "is more than"),
        (-1, "is outside 0 to"),
        (2**63, "is outside 0 to"),
        (True, "is not a size"),
    ],
)
def test_what_is_no_size_is_refused_with_the_value(text: str | int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_the_exact_form_reads_back_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert 0 <= parse_size(text) < 2**63
    except ValueError as error:
        assert repr(text) in str(error)


def test_people_get_three_digits() -> None:
    assert human_size(123456789) == "118 MiB"
    assert human_size(1536) == "1.5 KiB"
    assert human_size(5 * 2**40) == "5.0 TiB"
    assert human_size(7) == "7 B"
