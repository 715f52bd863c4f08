"""Quantities as people write them: `512MiB`, `1.5GiB`, `2000iops`, `10MiB/s`, `5ms`.

Sizes are bytes, rates are per second, times microseconds. Binary prefixes (KiB, MiB, GiB, TiB) are powers
of 1024, decimal ones (kB, MB, GB, TB) powers of 1000; a bare number is bytes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from decimal import Decimal

_SIZES = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}
_FORMS = ("TiB", "GiB", "MiB", "KiB", "TB", "GB", "MB", "kB")
_TIMES = {"us": 1, "µs": 1, "ms": 10**3, "s": 10**6}
_QUANTITY = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")
_IOPS = re.compile(r"\s*([0-9]{1,10})\s*iops\s*", re.IGNORECASE)
_TIME = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(us|µs|ms|s)\s*")
_SECONDS = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)\s*")
_SPAN = re.compile(r"\s*([0-9]{1,6})\s*(s|m|min|h|)\s*")
CPUS_MAX = 4096  # as many as a Linux kernel can be built for
_MAX_SIZE = 2**63 - 1  # what an off_t holds


def parse_size(text: str | int) -> int:
    """Bytes in `text`. Raises `ValueError` that shows the value and examples of what is allowed."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ValueError(f"{text!r} is not a size; write for example 512MiB or 1.5GiB")
    if isinstance(text, int):
        if not 0 <= text <= _MAX_SIZE:
            raise ValueError(f"{text} bytes is outside 0 to {_MAX_SIZE}")
        return text
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB, 1.5GiB or 10GB")
    size = Decimal(match[1]) * _SIZES[match[2]]
    if size != size.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size > _MAX_SIZE:
        raise ValueError(f"{text!r} is more than {_MAX_SIZE} bytes")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact form: 536870912 → `512MiB`, 10000000000 → `10GB`, 1001 → `1001B`."""
    exact = [unit for unit in _FORMS if size >= _SIZES[unit] and size % _SIZES[unit] == 0]
    unit = max(exact, key=_SIZES.__getitem__, default="B")
    return f"{size // _SIZES[unit]}{unit}"


def parse_rate(text: str | int) -> int:
    """Bytes per second in `text`: a size, with `/s` or without. Raises `ValueError` as `parse_size` does."""
    if isinstance(text, str) and text.rstrip().endswith("/s"):
        text = text.rstrip().removesuffix("/s")
    return parse_size(text)


def format_rate(rate: int) -> str:
    """The shortest exact form: 52428800 → `50MiB/s`."""
    return f"{format_size(rate)}/s"


def parse_iops(text: object) -> int | None:
    """Requests per second in a text like `2000iops`; None for anything else."""
    match = _IOPS.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else int(match[1])


def parse_time(text: object) -> int:
    """Microseconds in `5ms`, `200us` or `0.5s`. Raises `ValueError` that shows the value and examples."""
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not a time; write for example 5ms, 800us or 0.5s")
    time = Decimal(match[1]) * _TIMES[match[2]]
    if time != time.to_integral_value():
        raise ValueError(f"{text!r} is not a whole number of microseconds")
    return int(time)


def format_time(microseconds: int) -> str:
    """The shortest exact form: 5000 → `5ms`, 1500 → `1500us`."""
    for unit in ("s", "ms"):
        if microseconds and microseconds % _TIMES[unit] == 0:
            return f"{microseconds // _TIMES[unit]}{unit}"
    return f"{microseconds}us"


def parse_span(text: str) -> int:
    """Seconds in `90s`, `5m`, `1h` or a bare number of seconds. Raises `ValueError` with examples."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a span of time; write for example 90s, 5m or 1h")
    return int(match[1]) * {"h": 3600, "m": 60}.get(match[2][:1], 1)


def parse_duration(text: str) -> float:
    """Seconds in a bare number of them, `0.5`, or in what `parse_time` or `parse_span` takes: `500ms`, `5m`.

    Raises `ValueError` with examples.
    """
    if _SECONDS.fullmatch(text):
        return float(text)
    for parse, unit in ((parse_time, 1e6), (parse_span, 1)):
        with contextlib.suppress(ValueError):
            return parse(text) / unit
    raise ValueError(f"{text!r} is not a time; write for example 5, 0.5s, 500ms or 2m")


def human_time(microseconds: float) -> str:
    """Three significant digits for people: 1234 → `1.23 ms`."""
    for unit, factor in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= factor:
            return f"{microseconds / factor:.3g} {unit}"
    return f"{microseconds:.0f} us"


def human_size(size: float) -> str:
    """Three significant digits for people: 123456789 → `118 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPUs of a list as the kernel writes it, `0-3,8`. Raises `ValueError` that shows what is allowed."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"{text!r} is not a list of CPUs; write for example 0-3,8")
        begin, end = int(first), int(last or first)
        if end < begin or end >= CPUS_MAX:
            raise ValueError(f"{part!r}: CPUs are counted from 0 up, below {CPUS_MAX}")
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest list: 0, 1, 2, 3, 8 is `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
