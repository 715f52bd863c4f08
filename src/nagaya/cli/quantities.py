"""Quantities on the command line: `5ms`, `1h`, `64MiB`, `5%`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nagaya.units import parse_size, parse_span, parse_time

T = TypeVar("T")


class _Quantity(click.ParamType[T]):
    """What `parse` makes of a text; it raises `ValueError` for what is none."""

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        if not isinstance(value, str):  # a default, or converted already
            converted: T = value
            return converted
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def span(most: int, why: str) -> click.ParamType[int]:
    """Seconds as `90s`, `5m` or `1h`, at least one and `most` of them; `why` says why no more."""

    def parse(text: str) -> int:
        seconds = parse_span(text)
        if not 1 <= seconds <= most:
            raise ValueError(f"{text!r} is not between 1s and {most // 3600}h; {why}")
        return seconds

    return _Quantity("span", parse)


def _part(text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        part = float(number) / (100 if percent else 1)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a part; write for example 5% or 0.05") from error
    if not 0 <= part <= 1:
        raise ValueError(f"{text!r} is not between 0 and 1, or 0% and 100%")
    return part


TIME = _Quantity("time", parse_time)  # µs
SIZE = _Quantity("size", parse_size)  # bytes
PART = _Quantity("part", _part)  # 0 to 1
