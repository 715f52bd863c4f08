"""Rows and records as table, JSON, YAML or CSV."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from nagaya.ansi import clean
from nagaya.cli.session import Session

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, its value in a row for programs (CSV), and as people read it."""

    heading: str
    value: Callable[[Row], Any]
    human: Callable[[Any], str] = str
    right: bool = False


def field(name: str) -> Callable[[Row], Any]:
    """The value of `a.b` in a row, or None."""

    def value(row: Row) -> Any:
        found: Any = row
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found

    return value


def print_rows(session: Session, rows: Sequence[Row], columns: Sequence[Column], name: str = "name") -> None:
    """Print a list. JSON and YAML hold all of each row; table and CSV the columns; `-q` only `name`."""
    if session.quiet:
        for row in rows:
            click.echo(clean(str(row[name])))
    elif session.format == "csv":
        _print_csv([[column.value(row) for column in columns] for row in rows], columns)
    elif session.format == "table":
        _print_table(session, rows, columns)
    else:
        print_value(session, list(rows))


def print_value(session: Session, value: Any) -> None:
    """Print one thing: as JSON, as `key,value` lines of CSV, or as YAML, which also is its table."""
    if session.format == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    if session.format == "csv":
        _print_csv([[key, entry] for key, entry in value.items()], [])
        return
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def _print_table(session: Session, rows: Sequence[Row], columns: Sequence[Column]) -> None:
    def text(column: Column, row: Row) -> str:
        value = column.value(row)
        return "-" if value is None or value == "" else clean(column.human(value))

    cells = [[text(column, row) for column in columns] for row in rows]
    headings = [column.heading for column in columns]
    widths = [max(map(len, texts)) for texts in zip(headings, *cells, strict=True)]
    bold = session.colors(sys.stdout)
    heading = _line(headings, widths, columns)
    click.echo(click.style(heading, bold=True), color=bold)
    for line in cells:
        click.echo(_line(line, widths, columns))


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = (
        cell.rjust(width) if column.right else cell.ljust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return "  ".join(padded).rstrip()


def _print_csv(rows: Sequence[Sequence[Any]], columns: Sequence[Column]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    if columns:
        writer.writerow([column.heading.lower() for column in columns])
    for row in rows:
        writer.writerow([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row])
