"""Seconds on the command line: `5`, `0.5s`, `500ms`, `2m`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

import click

T = TypeVar("T")


class Quantity(click.ParamType[T]):
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


def seconds(least: float = 0, most: float = inf) -> click.ParamType[float]:
    """From `least` to `most` of them."""

    def parse(text: str) -> float:
        from nagaya.units import parse_duration  # milliseconds of every start, which seldom names a time

        found = parse_duration(text)
        if not least <= found <= most:
            bound = f"at least {least:g}s" if most == inf else f"between {least:g}s and {most:g}s"
            raise ValueError(f"{text!r} is not {bound}")
        return found

    return Quantity("seconds", parse)
