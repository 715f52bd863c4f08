"""Fixtures of the system tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.testing.yard import Yard, write_initrd

YardTest = Callable[[Yard], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RAM disk whose guest does what its kernel's command line says."""
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    write_initrd(path)
    return path


@pytest.fixture
def yard(paths: Paths, uml_kernel: Kernel, initrd: Path) -> Callable[[YardTest], None]:
    """Runs a coroutine function with a `Yard`, and cleans up after it."""

    async def whole(test: YardTest) -> None:
        one = Yard(paths, uml_kernel, initrd)
        try:
            await test(one)
        finally:
            await one.close()

    return lambda test: asyncio.run(whole(test))
