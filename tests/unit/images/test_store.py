"""The store: what is in it is whole, names move atomically, nothing in use goes away."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.errors import ConflictError, NotFoundError, SpecError
from nagaya.images.store import Image, ImageStore
from nagaya.paths import Paths

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    yield ImageStore(Paths(tmp_path / "run", tmp_path / "state", tmp_path / "cache"))


def add(store: ImageStore, name: str, content: bytes) -> Image:
    with store.area.work() as work:
        raw = work.path / "image.raw"
        raw.write_bytes(content)
        return store.add(name, raw, os_name="test")


def blobs(store: ImageStore) -> list[str]:
    return sorted(path.stem for path in store.area.root.glob("*.raw"))


def test_an_image_is_named_by_its_content_and_read_only(store: ImageStore) -> None:
    image = add(store, "one", b"x" * 512)
    path = Path(image.path)
    assert image.digest == hashlib.sha256(b"x" * 512).hexdigest()
    assert path.name == f"{image.digest}.raw"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert store.resolve("one") == image
    assert image.size == 512


def test_equal_content_is_stored_once_and_lives_as_long_as_a_name(store: ImageStore) -> None:
    first, second = add(store, "one", b"x" * 512), add(store, "two", b"x" * 512)
    assert first.path == second.path
    store.remove("one")
    assert blobs(store) == [first.digest]
    store.remove("two")
    assert blobs(store) == []


def test_an_unknown_name_is_answered_with_the_known_ones(store: ImageStore) -> None:
    add(store, "one", b"x" * 512)
    with pytest.raises(NotFoundError, match="no image is called 'other'; there is: one"):
        store.resolve("other")


@pytest.mark.parametrize("name", ["", "Up", "../x", "a/b", "-a", "a" * 64])
def test_a_name_that_is_no_name_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(SpecError, match="not an image name"):
        store.resolve(name)


def test_an_image_in_use_is_not_removed(store: ImageStore) -> None:
    image = add(store, "one", b"x" * 512)
    with pytest.raises(ConflictError, match="base of a machine's disk"):
        store.remove("one", {image.digest})
    assert store.resolve("one") == image


def test_a_name_can_move_and_what_it_left_is_collected_unless_in_use(store: ImageStore) -> None:
    old, new = add(store, "one", b"x" * 512), add(store, "one", b"y" * 512)
    assert store.resolve("one").digest == new.digest
    assert store.collect({old.digest}) == []
    assert store.collect() == [old.digest]
    assert blobs(store) == [new.digest]


def test_a_failed_build_leaves_nothing(store: ImageStore) -> None:
    with pytest.raises(RuntimeError), store.area.work() as work:
        (work.path / "half").write_bytes(b"x")
        raise RuntimeError("stop")
    assert list(store.area.directory("work").iterdir()) == []


BUILDER = """
import sys, time
from pathlib import Path
from nagaya.images.store import ImageStore
from nagaya.paths import Paths
top = Path(sys.argv[1])
with ImageStore(Paths(top / "run", top / "state", top / "cache")).area.work() as work:
    (work.path / "half").write_bytes(b"x")
    print("working", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_build_left_goes_with_the_next_and_a_running_one_stays(
    store: ImageStore, tmp_path: Path
) -> None:
    work = store.area.directory("work")
    with subprocess.Popen([sys.executable, "-c", BUILDER, tmp_path], stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"working\n"
        store.collect()
        assert len(list(work.iterdir())) == 1
        os.kill(builder.pid, signal.SIGKILL)
        builder.wait()
    add(store, "one", b"x" * 512)
    assert list(work.iterdir()) == []


def test_a_lock_lets_one_in_and_the_other_can_give_up(store: ImageStore) -> None:
    calls = 0

    def waiting() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise TimeoutError

    start = time.monotonic()
    with store.area.locked("key"), pytest.raises(TimeoutError), store.area.locked("key", waiting):
        pass
    assert calls == 3
    assert time.monotonic() - start < 5
    with store.area.locked("key"):
        pass
