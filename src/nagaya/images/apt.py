"""Where the host gets Debian's packages: guests are built from the same mirrors, through the same proxy."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

_PASSED_ON = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)
_ONE_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)")


def mirror_lines(suite: str, configuration: Path = Path("/etc/apt")) -> list[str]:
    """The host's `deb` lines for `suite`, its updates and its security; empty if the host has none."""
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    found: list[str] = []
    for uri, source_suite, components in _sources(configuration):
        if source_suite in wanted and "main" in components:
            found.append(f"deb {uri} {source_suite} {' '.join(components)}")
    return found if any(f" {suite} " in line for line in found) else []


def acquire_options() -> list[str]:
    """The host's apt options that decide whether a mirror can be reached, as lines of apt.conf."""
    dump = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, check=True, text=True
    ).stdout
    return [line for line in dump.splitlines() if line.split(" ", 1)[0] in _PASSED_ON]


def _sources(configuration: Path) -> Iterable[tuple[str, str, list[str]]]:
    directory = configuration / "sources.list.d"
    for file in (configuration / "sources.list", *sorted(directory.glob("*.list"))):
        for line in file.read_text().splitlines() if file.exists() else ():
            if match := _ONE_LINE.fullmatch(line.split("#", 1)[0].strip()):
                yield match[1], match[2], match[3].split()
    for file in sorted(directory.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            yield from _stanza(stanza)


def _stanza(text: str) -> Iterable[tuple[str, str, list[str]]]:
    fields: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace():
            fields.setdefault(name, []).extend(line.split())
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.lower()
            fields[name] = value.split()
    if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", []):
                yield uri, suite, fields.get("components", [])
