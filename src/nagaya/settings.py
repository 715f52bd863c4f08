"""Settings as people write them, `disk.weight=400` or `disks[0].share.limit=9MiB/s`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nagaya.errors import SpecError, UsageError
from nagaya.units import parse_iops

_STEP = re.compile(r"([a-z][a-z0-9_]*)(?:\[([0-9]{1,3})\])?")
_BY_UNIT = ("reservation", "limit")  # `2000iops` is meant for their twins, `reservation_iops`, `limit_iops`


def parse(text: str) -> tuple[str, object]:
    """`FIELD=VALUE`, the value read as YAML reads it. Raises `UsageError`."""
    from nagaya import yamlfile

    field, equals, value = text.partition("=")
    if not equals or not field:
        raise UsageError(f"{text!r} is not FIELD=VALUE", hint="for example disk.weight=400")
    try:
        return field, yamlfile.read(value).value
    except yamlfile.YamlError as error:
        raise UsageError(f"{text}: {error.message}") from error


def put(spec: dict[str, Any], field: str, value: object) -> None:
    """Set `field` in `spec`; None and "none" take it back to its default, a limit in both its units.

    Raises `UsageError` for what is no field's name, and `SpecError` for an entry that is not there.
    """
    steps = list(_steps(field))
    place: Any = spec
    for key, index in steps[:-1]:
        inner = place.setdefault(key, {} if index is None else [])
        if index is None and not isinstance(inner, dict):
            inner = place[key] = {"size": inner} if key == "memory" else {}
        place = inner if index is None else _entry(inner, index, field)
    key, index = steps[-1]
    if index is not None:
        raise UsageError(f"{field} is a whole entry", hint=f"name what is in it: {field}.share.weight")
    iops = parse_iops(value) if key in _BY_UNIT else None
    if value is None or value == "none":
        for name in (key, f"{key}_iops"):
            place.pop(name, None)
    elif iops is not None:
        place[f"{key}_iops"] = iops
    else:
        place[key] = value


def flatten(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All that is in `spec` by its dotted name: `{"disks[0].share.weight": 100}`."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for index, entry in enumerate(value):
                flat |= flatten(entry, f"{prefix}{key}[{index}].")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _steps(field: str) -> Iterator[tuple[str, int | None]]:
    for part in field.split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise UsageError(f"{field!r} names no field", hint="for example disk.weight")
        yield match[1], None if match[2] is None else int(match[2])


def _entry(entries: Any, index: int, field: str) -> Any:
    if not isinstance(entries, list) or index >= len(entries):
        count = len(entries) if isinstance(entries, list) else 0
        raise SpecError(f"{field}: there are {count} entries, counted from 0", field=field)
    return entries[index]
