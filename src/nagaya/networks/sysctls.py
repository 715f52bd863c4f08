"""Settings of the host's kernel that networks need, put back when they are not needed any more.

What a setting was before is written down before it is changed, so that a crash loses nothing. The record
holds for one boot and one network namespace; in another one it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

_TOP = Path("/proc/sys/net")


class Sysctls:
    """The settings that this Nagaya has changed. `record` is the file that remembers."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._before = self._load()

    def apply(self, wanted: Mapping[str, str]) -> None:
        """Make the changed settings be exactly `wanted`, names below /proc/sys/net; others are put back.

        A setting that the kernel does not have is left out: callers ask `has` where it matters.
        """
        for name in [name for name in self._before if name not in wanted]:
            _write(name, self._before[name])
            del self._before[name]
            self._save()
        for name, value in wanted.items():
            now = read(name)
            if now is None or now == value:
                continue
            if name not in self._before:
                self._before[name] = now
                self._save()
            _write(name, value)

    def before(self, name: str) -> str | None:
        """Its value without this Nagaya; None if there is no such setting."""
        return self._before.get(name, read(name))

    def _load(self) -> dict[str, str]:
        try:
            body = json.loads(self._record.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if body.get("where") != _where() or not isinstance(body.get("before"), dict):
            return {}
        return {str(name): str(value) for name, value in body["before"].items()}

    def _save(self) -> None:
        if not self._before:
            self._record.unlink(missing_ok=True)
            return
        fresh = self._record.with_suffix(".new")
        fresh.write_text(json.dumps({"where": _where(), "before": self._before}))
        fresh.replace(self._record)


def read(name: str) -> str | None:
    """The value of a setting below /proc/sys/net; None if the kernel or the interface has none."""
    try:
        return (_TOP / name).read_text().strip()
    except OSError:
        return None


def has(name: str) -> bool:
    """Whether the kernel has that setting."""
    return (_TOP / name).exists()


def write_own(name: str, value: str) -> None:
    """Set what belongs to an interface of our own, and goes away with it; nothing to remember."""
    _write(name, value)


def _write(name: str, value: str) -> None:
    if has(name):  # an interface may be gone, with its settings
        (_TOP / name).write_text(value)


def _where() -> list[str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return [boot, str(Path("/proc/thread-self/ns/net").readlink())]
