"""What the daemon does by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from nagaya.daemon.upkeep import sweep_builds
from nagaya.images.workarea import areas
from nagaya.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c")


def begin_and_be_killed(paths: Paths) -> None:
    """What a daemon leaves that is killed while it builds an image and a kernel."""
    child = os.fork()
    if child == 0:
        images, kernels = areas(paths)
        with images.work() as image, kernels.work() as kernel:
            for work in (image, kernel):
                (work.path / "half").write_bytes(bytes(4096))
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_killed_builds_left_is_gone_and_what_is_built_now_stays(paths: Paths) -> None:
    begin_and_be_killed(paths)
    lefts = [next(area.directory("work").iterdir()) for area in areas(paths)]
    assert all((left / "half").exists() for left in lefts)
    with areas(paths)[1].work() as mine:  # which removes what is left of kernels
        asyncio.run(sweep_builds(paths))
        assert mine.path.exists()
        assert not any(left.exists() for left in lefts)


def test_where_nothing_was_built_nothing_is_made(paths: Paths) -> None:
    asyncio.run(sweep_builds(paths))
    assert not paths.state.exists()
    assert not paths.cache.exists()
