"""Quantities on the command line."""

from __future__ import annotations

import click
import pytest

from nagaya.cli.quantities import PART, SIZE, TIME, span


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (PART, "5%", 0.05),
        (PART, "0.05", 0.05),
        (PART, "100%", 1),
        (TIME, "1.5ms", 1500),
        (SIZE, "1KiB", 1024),
        (span(3600, "why"), "1h", 3600),
    ],
)
def test_what_is_written_is_understood(kind: click.ParamType[object], text: str, value: float) -> None:
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (PART, "101%", "not between 0 and 1"),
        (PART, "-0.1", "not between 0 and 1"),
        (PART, "nan", "not between 0 and 1"),
        (PART, "a few", "write for example 5% or 0.05"),
        (TIME, "5", "5ms, 800us"),
        (span(3600, "more is not kept"), "2h", "not between 1s and 1h; more is not kept"),
        (span(3600, "more is not kept"), "0", "not between 1s and 1h"),
    ],
)
def test_what_is_wrong_is_said(kind: click.ParamType[object], text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        kind.convert(text, None, None)
