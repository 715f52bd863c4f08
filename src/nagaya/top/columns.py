"""The columns of `top`: what they hold, sort by, and how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nagaya.top.rows import Row
from nagaya.units import human_size, human_time


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its value in a row (None: not known), how people read it, and the key that sorts by it."""

    name: str
    heading: str
    key: str  # "" for none
    value: Callable[[Row], Any]
    human: Callable[[Any], str] = str
    right: bool = True

    def text(self, row: Row) -> str:
        """What is shown of a row."""
        value = self.value(row)
        return "" if value is None else self.human(value)


def _count(value: float) -> str:
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _rate(value: float) -> str:
    return f"{human_size(value)}/s"


def _waited(value: float) -> str:
    return f"{human_time(value * 1e6)}/s"


COLUMNS = (
    Column("name", "NAME", "n", lambda row: row.name, right=False),
    Column("state", "STATE", "", lambda row: row.state, right=False),
    Column("cpu", "CPU", "c", lambda row: row.cpu, _percent),
    Column("cpuwait", "WAIT", "u", lambda row: row.cpu_wait, _percent),
    Column("throttled", "LIMIT", "h", lambda row: row.throttled, _percent),
    Column("memory", "MEMORY", "m", lambda row: row.memory, human_size),
    Column("memwait", "STALL", "e", lambda row: row.memory_wait, _percent),
    Column("iops", "IOPS", "i", lambda row: row.iops, _count),
    Column("rate", "DISK", "d", lambda row: row.rate, _rate),
    Column("received", "RECV", "r", lambda row: row.received, _rate),
    Column("sent", "SENT", "t", lambda row: row.sent, _rate),
    Column("p99", "P99", "p", lambda row: row.p99_us or None, human_time),
    Column("flight", "INFL", "f", lambda row: row.in_flight, _count),
    Column("weight", "WEIGHT", "", lambda row: row.weight, _count),
    Column("waited", "WAITED", "w", lambda row: row.waited or None, _waited),
    Column("whom", "FOR", "", lambda row: row.whom, right=False),
)
BY_NAME = {column.name: column for column in COLUMNS}
SORT_KEYS = {column.key: column.name for column in COLUMNS if column.key}


def ordered(rows: Iterable[Row], column: str) -> list[Row]:
    """Rows by a column: names and other words upwards, numbers from the largest, unknown ones last."""
    value = BY_NAME[column].value
    if not BY_NAME[column].right:
        return sorted(rows, key=lambda row: (value(row), row.name))
    return sorted(rows, key=lambda row: (value(row) is None, -(value(row) or 0), row.name))
