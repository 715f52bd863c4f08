"""Files that describe images, machines, networks and more, as `nagaya up` takes them.

```yaml
images:
  web: {kind: debian, packages: [nginx-light]}
machines:
  web:
    memory: 512MiB
    disks: [{image: web}]
    tenant: acme
networks:
  back: {mode: isolated}
groups:
  web: {in: [tcp:80]}
tenants:
  acme: {disk: {limit: 9000iops}}
```

Every error names the file, the line, the field, the value and what is allowed; all of them come at once.
Keys at the top that begin with `x-` are ignored, so that anchors have a place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from nagaya import validation, yamlfile
from nagaya.errors import NotFoundError, PermissionDeniedError, SpecError
from nagaya.images.recipe import Recipe
from nagaya.spec import NAME_PATTERN, MachineSpec, NetworkSpec, SecurityGroup, Tenant, check_name

MAX_MACHINES = 1000  # more than one host runs; bounds what one `up` can ask for

_NAMED: dict[str, type[BaseModel]] = {  # sections whose entries have their key as name
    "machines": MachineSpec,
    "networks": NetworkSpec,
    "groups": SecurityGroup,
    "tenants": Tenant,
}
_SECTIONS = ("images", *_NAMED)


@dataclass(frozen=True, slots=True)
class SpecFile:
    """What a file asks for. `source` is its name in messages."""

    source: str
    images: dict[str, Recipe] = field(default_factory=dict)
    machines: dict[str, MachineSpec] = field(default_factory=dict)
    networks: dict[str, NetworkSpec] = field(default_factory=dict)
    groups: dict[str, SecurityGroup] = field(default_factory=dict)
    tenants: dict[str, Tenant] = field(default_factory=dict)


def load(path: Path | str) -> SpecFile:
    """Read `path`, or standard input for `-`. Raises `SpecError` and the like."""
    source = "<stdin>" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(yamlfile.MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(yamlfile.MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {source}", hint="name one with -f FILE") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{source} may not be read by you") from error
    except OSError as error:
        raise SpecError(f"{source} cannot be read: {error.strerror}") from error
    if len(raw) > yamlfile.MAX_BYTES:
        raise SpecError(f"{source} is larger than {yamlfile.MAX_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{source}:{line}: byte {raw[error.start]:#04x} is not UTF-8") from error
    return parse(text, source)


def parse(text: str, source: str = "<text>") -> SpecFile:
    """Read the text of a file. Raises `SpecError` with all problems, one a line, and `facts["problems"]`."""
    try:
        document = yamlfile.read(text)
    except yamlfile.YamlError as error:
        raise _refusal(source, [(error.line, validation.Problem(error.path, error.message))]) from error
    return _Reader(document, source).read()


def json_schema() -> dict[str, Any]:
    """The JSON schema of a file, for editors (`nagaya schema`)."""
    recipe = TypeAdapter(Recipe).json_schema(ref_template="#/$defs/{model}")
    sections: dict[str, Any] = {"images": recipe}
    for section, model in _NAMED.items():
        sections[section] = model.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {name: it for one in sections.values() for name, it in one.pop("$defs", {}).items()}
    for section in _NAMED:  # the key in its section is the name
        named = sections[section]
        del named["properties"]["name"]
        named["required"] = [name for name in named.get("required", []) if name != "name"]
    memory = sections["machines"]["properties"]["memory"]
    memory["anyOf"] = [{"type": ["string", "integer"]}, {"$ref": memory.pop("$ref")}]
    names = {"pattern": NAME_PATTERN}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What nagaya up takes: images, machines, networks, security groups and tenants",
        "type": "object",
        "properties": {
            section: {"type": "object", "propertyNames": names, "additionalProperties": one}
            for section, one in sections.items()
        },
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        "$defs": definitions,
    }


class _Reader:
    """Turns a document into a `SpecFile`, collecting what is wrong."""

    def __init__(self, document: yamlfile.Document, source: str) -> None:
        self._document = document
        self._source = source
        self._problems = [
            (error.line, validation.Problem(error.path, error.message)) for error in document.errors
        ]

    def read(self) -> SpecFile:
        top = self._mapping((), self._document.value)
        for key in top:
            if key not in _SECTIONS and not key.startswith("x-"):
                self._complain((key,), validation.unknown_key(key, _SECTIONS))
        images = self._section("images", top, Recipe)
        named = {section: self._section(section, top, model) for section, model in _NAMED.items()}
        if len(named["machines"]) > MAX_MACHINES:
            self._complain(("machines",), f"{len(named['machines'])} machines, {MAX_MACHINES} are allowed")
        if self._problems:
            raise _refusal(self._source, self._problems)
        return SpecFile(self._source, images, **named)

    def _section(self, section: str, top: dict[str, Any], model: Any) -> dict[str, Any]:
        built = {}
        for name, value in self._mapping((section,), top.get(section)).items():
            path = (section, name)
            try:
                check_name(name)
            except ValueError as error:
                self._complain(path, str(error))
                continue
            entry = self._mapping(path, value)
            if section in _NAMED:
                if entry.get("name", name) != name:
                    message = f"{validation.shown(entry['name'])} differs from its key {name!r}; leave it out"
                    self._complain((*path, "name"), message)
                entry = {**entry, "name": name}
            try:
                built[name] = TypeAdapter(model).validate_python(entry)
            except ValidationError as error:
                known = model if isinstance(model, type) and issubclass(model, BaseModel) else None
                for problem in validation.problems(error, known):
                    self._complain((*path, *problem.field), problem.message)
        return built

    def _mapping(self, path: yamlfile.Path, value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._complain(path, f"{validation.shown(value)} is not a mapping of keys to values")
        return {}

    def _complain(self, path: yamlfile.Path, message: str) -> None:
        written = self._document.written(path)
        missing = path[len(written) :] if message == "is missing" else ()
        self._problems.append((self._document.lines[written], validation.Problem(written + missing, message)))


def _refusal(source: str, found: list[tuple[int, validation.Problem]]) -> SpecError:
    """One error for all problems, in the file's order."""
    ordered = sorted(dict.fromkeys(found), key=lambda one: one[0])
    return SpecError(
        "\n".join(validation.printable(f"{source}:{line}: {problem}") for line, problem in ordered),
        problems=[
            {"line": line, "field": validation.dotted(problem.field), "message": problem.message}
            for line, problem in ordered
        ],
    )
