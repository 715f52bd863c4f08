"""Quantities as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.units import (
    format_rate,
    format_size,
    format_time,
    human_size,
    human_time,
    parse_iops,
    parse_rate,
    parse_size,
    parse_span,
    parse_time,
)


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


@pytest.mark.parametrize("text", ["512MiB", "10GB", "1TB", "3kB", "1500KiB", "1001B", "0B"])
def test_the_exact_form_is_the_shortest(text: str) -> None:
    assert format_size(parse_size(text)) == text


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


@given(st.integers(0, 2**62))
def test_a_rate_survives_the_way_to_text_and_back(rate: int) -> None:
    assert parse_rate(format_rate(rate)) == rate
    assert parse_rate(format_size(rate)) == rate


@given(st.integers(1, 10**9))
def test_a_time_survives_the_way_to_text_and_back(microseconds: int) -> None:
    assert parse_time(format_time(microseconds)) == microseconds


@pytest.mark.parametrize("text", ["5", 5, "5m", "", "-5ms", "1.0000005s", "0.5us", True, None])
def test_what_is_no_time_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "iops"),
    [("2000iops", 2000), ("2000 IOPS", 2000), ("2000", None), ("50MiB/s", None), (2000, None)],
)
def test_iops_are_told_from_bytes_by_their_unit(text: object, iops: int | None) -> None:
    assert parse_iops(text) == iops


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2min", 120), ("1h", 3600), ("60", 60)]
)
def test_a_span_is_seconds(text: str, seconds: int) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "5ms", "1.5h", "5 days"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a span"):
        parse_span(text)


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0, "0 us"), (999, "999 us"), (1234, "1.23 ms"), (2.5e6, "2.5 s")]
)
def test_a_time_for_people(microseconds: float, text: str) -> None:
    assert human_time(microseconds) == text
