"""What the unit tests share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.testing.scratch import make_directory


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a unix socket's path holds 107 bytes."""
    top = make_directory()
    yield top
    shutil.rmtree(top)
