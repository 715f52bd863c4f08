"""A daemon on fakes, in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from nagaya.paths import Paths
from nagaya.testing import Stage
from nagaya.testing.scratch import make_directory


@pytest.fixture
def own_paths() -> Iterator[Paths]:
    """Directories of its own, short enough for sockets."""
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    for directory in (paths.run, paths.state, paths.cache):
        directory.mkdir()
    yield paths
    shutil.rmtree(top)


@pytest.fixture
def stage(own_paths: Paths) -> Iterator[Stage]:
    """Plays scenes with daemons on `own_paths`; ends what machines are left."""
    stage = Stage(own_paths)
    yield stage
    stage.clear()
