"""The systemd units, with the Python that this package is installed in.

`python -m nagaya.daemon.units DIRECTORY` writes them, usually to /etc/systemd/system.
"""

from __future__ import annotations

import sys
from pathlib import Path


def unit_files(python: str = sys.executable) -> dict[str, str]:
    """The units by file name; `python` runs the programs."""
    files = sorted(Path(__file__).parent.glob("*.service"))
    return {file.name: file.read_text().replace("@python@", python) for file in files}


def install(directory: Path) -> list[Path]:
    """Write the units to `directory`; their paths."""
    written = []
    for name, text in unit_files().items():
        path = directory / name
        path.write_text(text)
        written.append(path)
    return written
