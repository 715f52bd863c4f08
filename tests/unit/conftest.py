"""What the unit tests share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a unix socket's path holds 107 bytes."""
    top = Path(tempfile.mkdtemp(prefix="ng", dir="/tmp"))
    yield top
    shutil.rmtree(top)
