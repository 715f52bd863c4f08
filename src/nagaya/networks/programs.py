"""The programs of the host that networks need."""

from __future__ import annotations

import shutil

from nagaya.errors import UnavailableError

_MORE_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"  # where a user's PATH may not lead


def find_program(name: str) -> str | None:
    """Its absolute path, or None."""
    return shutil.which(name) or shutil.which(name, path=_MORE_PATH)


def require_program(name: str, package: str) -> str:
    """Its absolute path. Raises `UnavailableError` naming Debian's package."""
    found = find_program(name)
    if found is None:
        raise UnavailableError(f"{name} is not installed", hint=f"apt-get install {package}", program=name)
    return found
