"""Quantities on the command line: `5ms`, `1h`, `64MiB`, `5%`."""

from __future__ import annotations

import click

from nagaya.cli.seconds import Quantity
from nagaya.units import parse_size, parse_span, parse_time


def span(most: int, why: str) -> click.ParamType[int]:
    """Seconds as `90s`, `5m` or `1h`, at least one and `most` of them; `why` says why no more."""

    def parse(text: str) -> int:
        seconds = parse_span(text)
        if not 1 <= seconds <= most:
            raise ValueError(f"{text!r} is not between 1s and {most // 3600}h; {why}")
        return seconds

    return Quantity("span", parse)


def _part(text: str) -> float:
    number, percent = text.removesuffix("%"), text.endswith("%")
    try:
        part = float(number) / (100 if percent else 1)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a part; write for example 5% or 0.05") from error
    if not 0 <= part <= 1:
        raise ValueError(f"{text!r} is not between 0 and 1, or 0% and 100%")
    return part


TIME = Quantity("time", parse_time)  # µs
SIZE = Quantity("size", parse_size)  # bytes
PART = Quantity("part", _part)  # 0 to 1
