"""Bounded YAML with line numbers: plain values, and where each of them was written.

A strict part of YAML 1.2: text, numbers, true, false, null, lists, mappings, anchors and merge keys (`<<`).
Duplicate keys, tags and several documents are refused, and so is what is large, deep or multiplies itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 2**20  # a thousand machines fit in a tenth of it
MAX_DEPTH = 32  # the deepest specification needs six; below what Python's stack holds
MAX_VALUES = 100_000  # after anchors are expanded: bounds a "billion laughs"

_INT = re.compile(r"[-+]?[0-9]{1,4000}")  # Python refuses more than 4300 digits
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    text: value
    for word, value in (("true", True), ("false", False))
    for text in (word, word.title(), word.upper())
}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = tuple[str | int, ...]


class YamlError(Exception):
    """The text is not the YAML we take. `line` counts from 1."""

    def __init__(self, line: int, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.line = line
        self.message = message
        self.path = path


@dataclass(slots=True)
class Document:
    """The values of a file, the lines they start on, and what was wrong with single values."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    errors: list[YamlError] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest part above it that was written."""
        return self.lines[self.written(path)]

    def written(self, path: Path) -> Path:
        """`path`, or the nearest part above it that was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return path


def read(text: str) -> Document:
    """Read `text`. Raises `YamlError` where nothing can be read; `errors` has the faults of single values."""
    try:
        _check_shape(text)
        node = yaml.compose(text, _LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" {error.context}" if error.context else ""
        raise YamlError(mark.line + 1 if mark else 1, f"not YAML: {error.problem}{context}") from error
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        position = getattr(error, "position", getattr(error, "start", 0))
        line = text.count("\n", 0, position) + 1
        raise YamlError(line, f"not YAML: {getattr(error, 'reason', error)}") from error
    document = Document(lines={(): 1})
    if node is not None:
        document.value = _Walk(document).value(node, ())
    return document


def _check_shape(text: str) -> None:
    """Bound size and depth before anything recurses over the text."""
    size = len(text)
    if size > MAX_BYTES:
        raise YamlError(1, f"the file has {size} characters, {MAX_BYTES} are allowed")
    depth = documents = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise YamlError(_line(event), f"the tag {tag!r} is not taken")
        if depth > MAX_DEPTH:
            raise YamlError(_line(event), f"nested deeper than {MAX_DEPTH} levels")
        if documents > 1:
            raise YamlError(_line(event), "a second document begins here; put all into one")


class _Walk:
    """Turns composed nodes into plain values."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._seen = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._count(node, len(path))
        self._document.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.style else _plain(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        values = {}
        for key, (key_node, value_node) in self._pairs(node, path, 0).items():
            self._document.lines.setdefault((*path, key), _line(key_node))
            values[key] = self.value(value_node, (*path, key))
        return values

    def _pairs(self, node: Any, path: Path, merges: int) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Keys and values of a mapping; its own win over those that `<<` brings, earlier ones over later."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        inherited: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            self._count(key_node, merges)
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(key_node, "a key must be a word", path)
                continue
            key: str = key_node.value
            if key == "<<" and not key_node.style:
                for source in self._merge_sources(value_node, path):
                    for name, pair in self._pairs(source, path, merges + 1).items():
                        inherited.setdefault(name, pair)
            elif key in own:
                first = _line(own[key][0])
                self._complain(key_node, f"the key {key!r} is here a second time, after line {first}", path)
            else:
                own[key] = (key_node, value_node)
        return inherited | own

    def _merge_sources(self, node: yaml.Node, path: Path) -> Iterator[yaml.Node]:
        for one in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(one, yaml.MappingNode):
                yield one
            else:
                self._complain(one, "`<<` takes a mapping, or a list of them", path)

    def _count(self, node: yaml.Node, depth: int) -> None:
        """Bound the work that anchors multiply."""
        self._seen += 1
        if self._seen > MAX_VALUES:
            raise YamlError(_line(node), f"more than {MAX_VALUES} values after anchors are expanded")
        if depth > MAX_DEPTH:
            raise YamlError(_line(node), "an anchor contains itself")

    def _complain(self, node: yaml.Node, message: str, path: Path) -> None:
        self._document.errors.append(YamlError(_line(node), message, path))


def _line(place: yaml.Node | yaml.Event) -> int:
    return place.start_mark.line + 1 if place.start_mark else 1


def _plain(text: str) -> Any:
    """The value of unquoted `text`, by the core schema of YAML 1.2: `no` and `52:54:00` are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
