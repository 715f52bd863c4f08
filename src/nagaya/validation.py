"""Pydantic's complaints in this project's words: the field, the value, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nagaya.units import format_size

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_SHOWN = 60  # characters of a value that a message repeats

_PHRASES = {
    "missing": "is missing",
    "bool_parsing": "is not true or false",
    "bool_type": "is not true or false",
    "int_parsing": "is not a whole number",
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_parsing": "is not a number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "string_type": "is not text; put it in quotes",
    "dict_type": "is not a mapping of keys to values",
    "model_type": "is not a mapping of keys to values",
    "model_attributes_type": "is not a mapping of keys to values",
    "tuple_type": "is not a list",
    "list_type": "is not a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "is longer than {max_length} characters",
    "string_too_short": "is shorter than {min_length} characters",
    "too_long": "has {actual_length} entries, {max_length} are allowed",
    "too_short": "has {actual_length} entries, at least {min_length} are needed",
    "literal_error": "is not one of {expected}",
    "enum": "is not one of {expected}",
    "union_tag_invalid": "has {discriminator} {tag!r}, which is not one of {expected_tags}",
    "union_tag_not_found": "has no {discriminator}",
}
_WITHOUT_VALUE = {"missing", "too_long", "too_short", "union_tag_invalid", "union_tag_not_found"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `field` is its path of keys and indexes; `message` has value and remedy."""

    field: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.field)}: {self.message}" if self.field else self.message


def dotted(field: Iterable[str | int]) -> str:
    """`("disks", 0, "size")` as people write it: `disks[0].size`. A key's control characters are escaped."""
    text = ""
    for part in field:
        text += f"[{part}]" if isinstance(part, int) else f".{printable(part)}" if text else printable(part)
    return text


def printable(text: str) -> str:
    """`text` on one line, harmless to a terminal: what is not printable is written as Python escapes it."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def problems(error: ValidationError, model: type[BaseModel] | None = None) -> list[Problem]:
    """All that `error` complains of, in order. With `model`, unknown keys get the nearest known one."""
    return problems_in(error.errors(include_url=False), model)


def problems_in(errors: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None) -> list[Problem]:
    """The same for pydantic's errors as mappings, as FastAPI passes them on."""
    return [Problem(tuple(one["loc"]), _message(one, model)) for one in errors]


def unknown_key(key: str, allowed: Iterable[str]) -> str:
    """`unknown key 'memroy'; did you mean 'memory'?`, or the list of what is allowed."""
    known = sorted(allowed)
    near = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(known)}"
    return f"unknown key {shown(key)}; {remedy}" if known else f"unknown key {shown(key)}"


def shown(value: object) -> str:
    """`value` for a message, cut where it gets long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _message(one: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    kind, value, context = one["type"], one["input"], one.get("ctx", {})
    if kind == "extra_forbidden":
        part = _model_at(model, one["loc"][:-1])
        return unknown_key(str(one["loc"][-1]), part.model_fields if part else ())
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        part = _model_at(model, one["loc"][:-1])
        field = part.model_fields.get(str(one["loc"][-1])) if part else None
        allowed = field.description if field and field.description else f"it must match {context['pattern']}"
        return f"{shown(value)} is not allowed: {allowed}"
    if isinstance(value, str):  # a size as people write it: its bound, too
        context = {key: _as_size(bound) for key, bound in context.items()}
    phrase = _PHRASES.get(kind)
    text = phrase.format(**context) if phrase else str(one["msg"]).lower()
    return text if kind in _WITHOUT_VALUE else f"{shown(value)} {text}"


def _as_size(bound: Any) -> Any:
    return format_size(bound) if isinstance(bound, int) and bound >= 1024 else bound


def _model_at(model: type[BaseModel] | None, path: Iterable[str | int]) -> type[BaseModel] | None:
    """The model of the part of `model` at `path`."""
    for part in path:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Disk`, `tuple[Disk, ...]` or `Disk | None`."""
    if hasattr(annotation, "model_fields"):
        found: type[BaseModel] = annotation
        return found
    for argument in getattr(annotation, "__args__", ()):
        inner = _model_in(argument)
        if inner is not None:
            return inner
    return None
