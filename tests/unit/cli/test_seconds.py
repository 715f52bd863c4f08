"""Seconds on the command line."""

from __future__ import annotations

import click
import pytest

from nagaya.cli.seconds import seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("0", 0), ("2.5", 2.5), ("5s", 5), ("0.5s", 0.5), ("250ms", 0.25), ("2m", 120), ("1h", 3600)],
)
def test_they_are_a_number_or_have_a_unit(text: str, value: float) -> None:
    assert seconds().convert(text, None, None) == value


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e3", "5 days", ""])
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"write for example 5, 0\.5s, 500ms or 2m"):
        seconds().convert(text, None, None)


def test_bounds_are_said() -> None:
    assert seconds(5, 86400).convert("24h", None, None) == 86400
    with pytest.raises(click.BadParameter, match="'4s' is not between 5s and 86400s"):
        seconds(5, 86400).convert("4s", None, None)
    with pytest.raises(click.BadParameter, match="'0' is not at least 1s"):
        seconds(1).convert("0", None, None)
