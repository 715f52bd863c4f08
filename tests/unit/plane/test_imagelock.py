"""Image locks: one writer or many readers, understood by QEMU's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nagaya.plane.imagelock import lock_image, processes_using, unlock_image


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def image(directory: Path) -> Path:
    path = directory / "image"
    path.write_bytes(bytes(4096))
    return path


def test_readers_share_and_a_writer_is_alone(image: Path) -> None:
    with opened(image, os.O_RDONLY) as first, opened(image, os.O_RDONLY) as second:
        assert lock_image(first, writer=False)
        assert lock_image(second, writer=False)
        with opened(image, os.O_RDWR) as third:
            assert not lock_image(third, writer=True)
            unlock_image(first)
            unlock_image(second)
            assert lock_image(third, writer=True)
            assert not lock_image(first, writer=False)


def test_two_writers_do_not_both_win(image: Path) -> None:
    with opened(image, os.O_RDWR) as first, opened(image, os.O_RDWR) as second:
        assert lock_image(first, writer=True)
        assert not lock_image(second, writer=True)


def test_unlocking_does_not_wait_for_duplicates(image: Path) -> None:
    with opened(image, os.O_RDWR) as first, opened(image, os.O_RDWR) as second:
        assert lock_image(first, writer=True)
        duplicate = os.dup(first)
        unlock_image(first)
        assert lock_image(second, writer=True)
        os.close(duplicate)


@pytest.mark.qemu
def test_qemu_img_respects_a_writer_and_reads_beside_readers(image: Path) -> None:
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(image), str(image) + ".copy"]
    with opened(image, os.O_RDWR) as fd:
        assert lock_image(fd, writer=True)
        refused = subprocess.run(convert, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "lock" in refused.stderr
    with opened(image, os.O_RDONLY) as fd:
        assert lock_image(fd, writer=False)
        assert subprocess.run(convert, capture_output=True, check=False).returncode == 0


@pytest.mark.qemu
def test_an_image_that_qemu_io_writes_is_refused(image: Path) -> None:
    writer = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer, opened(image, os.O_RDWR) as fd:
        assert writer.stdout is not None
        assert writer.stdout.read(7) == b"qemu-io"
        assert not lock_image(fd, writer=True)
        assert processes_using(fd) == [f"qemu-io (pid {writer.pid})"]
        writer.communicate(b"quit\n")
        assert lock_image(fd, writer=True)


def test_users_are_found_by_file_not_by_name(image: Path) -> None:
    alias = image.with_name("alias")
    alias.hardlink_to(image)
    code = "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, alias], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder, opened(image, os.O_RDONLY) as fd:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert [user.rpartition(" (")[2] for user in processes_using(fd)] == [f"pid {holder.pid})"]
        holder.communicate(b"")
