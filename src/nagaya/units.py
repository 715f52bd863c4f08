"""Quantities as people write them: `512MiB`, `1.5GiB`, `2000iops`, `10MiB/s`, `50%`.

Sizes are bytes, rates are per second. Binary prefixes (KiB, MiB, GiB, TiB) are powers of 1024,
decimal ones (kB, MB, GB, TB) powers of 1000; a bare number is bytes.
"""

from __future__ import annotations

import re
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
_QUANTITY = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")
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
    """The shortest exact binary form: 536870912 → `512MiB`, 1000 → `1000B`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = _SIZES[unit]
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}B"


def human_size(size: float) -> str:
    """Three significant digits for people: 123456789 → `118 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
