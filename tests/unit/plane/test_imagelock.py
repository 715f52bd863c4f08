"""Image locks: one writer or many readers, understood by QEMU's tools."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from nagaya.plane import imagelock
from nagaya.plane.imagelock import Access, User, is_free, lock_image, unlock_image, users_of


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
        assert lock_image(first, Access.READER)
        assert lock_image(second, Access.READER)
        with opened(image, os.O_RDWR) as third:
            assert not lock_image(third, Access.WRITER)
            unlock_image(first)
            unlock_image(second)
            assert lock_image(third, Access.WRITER)
            assert not lock_image(first, Access.READER)


def test_who_changes_nothing_that_is_read_may_write_beside_readers(image: Path) -> None:
    with opened(image, os.O_RDONLY) as reader, opened(image, os.O_RDWR) as filler:
        assert lock_image(reader, Access.READER)
        assert lock_image(filler, Access.FILLER)
        with opened(image, os.O_RDWR) as other:
            assert not lock_image(other, Access.FILLER)
            assert not lock_image(other, Access.WRITER)
            assert lock_image(other, Access.READER)
        unlock_image(filler)
        unlock_image(reader)
        assert lock_image(reader, Access.READER)


def test_two_writers_do_not_both_win(image: Path) -> None:
    with opened(image, os.O_RDWR) as first, opened(image, os.O_RDWR) as second:
        assert lock_image(first, Access.WRITER)
        assert not lock_image(second, Access.WRITER)


def test_unlocking_does_not_wait_for_duplicates(image: Path) -> None:
    with opened(image, os.O_RDWR) as first, opened(image, os.O_RDWR) as second:
        assert lock_image(first, Access.WRITER)
        duplicate = os.dup(first)
        unlock_image(first)
        assert lock_image(second, Access.WRITER)
        os.close(duplicate)


@pytest.mark.qemu
def test_qemu_img_respects_a_writer_and_reads_beside_readers(image: Path) -> None:
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(image), str(image) + ".copy"]
    for access in (Access.WRITER, Access.SHARED):
        with opened(image, os.O_RDWR) as fd:
            assert lock_image(fd, access)
            refused = subprocess.run(convert, capture_output=True, text=True, check=False)
            assert refused.returncode == 1
            assert "lock" in refused.stderr
    with opened(image, os.O_RDONLY) as fd:
        assert lock_image(fd, Access.READER)
        assert subprocess.run(convert, capture_output=True, check=False).returncode == 0


@pytest.mark.qemu
def test_an_image_that_qemu_io_writes_is_refused(image: Path) -> None:
    begun = time.time()
    writer = subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer, opened(image, os.O_RDWR) as fd:
        assert writer.stdout is not None
        assert writer.stdout.read(7) == b"qemu-io"
        assert not lock_image(fd, Access.WRITER)
        (user,) = users_of(str(image))
        assert user == User(writer.pid, "qemu-io")
        assert begun - 1 <= user.since <= time.time() + 1
        assert not is_free(str(image), Access.READER)
        writer.communicate(b"quit\n")
        assert lock_image(fd, Access.WRITER)


def test_who_shares_shares_with_those_who_share_only(image: Path) -> None:
    with opened(image, os.O_RDWR) as first, opened(image, os.O_RDWR) as second:
        assert lock_image(first, Access.SHARED)
        assert lock_image(second, Access.SHARED)
        with opened(image, os.O_RDWR) as third:
            assert not lock_image(third, Access.READER)
            assert not lock_image(third, Access.WRITER)


def test_of_many_who_try_at_once_exactly_one_wins(image: Path) -> None:
    for _ in range(20):
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as threads:
            fds = [stack.enter_context(opened(image, os.O_RDWR)) for _ in range(8)]
            together = threading.Barrier(len(fds))

            def try_it(fd: int, together: threading.Barrier = together) -> bool:
                together.wait()
                return lock_image(fd, Access.WRITER)

            assert sum(threads.map(try_it, fds)) == 1


def test_who_never_ends_its_turn_keeps_nobody_out(image: Path) -> None:
    with opened(image, os.O_RDWR) as hung, opened(image, os.O_RDWR) as fd:
        imagelock._set(hung, fcntl.F_WRLCK, imagelock._TURN)
        assert lock_image(fd, Access.WRITER)


def test_users_are_found_by_file_and_lock_not_by_name(image: Path) -> None:
    alias = image.with_name("alias")
    alias.hardlink_to(image)
    code = (
        "import os, sys; from nagaya.plane.imagelock import Access, lock_image;"
        "fd = os.open(sys.argv[1], os.O_RDWR); sys.argv[2] == 'lock' and lock_image(fd, Access.WRITER);"
        "print(flush=True); sys.stdin.read()"
    )
    with contextlib.ExitStack() as stack:
        pids = []
        for what in ("look", "lock"):
            process = subprocess.Popen(
                [sys.executable, "-c", code, alias, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.enter_context(process)
            assert process.stdout is not None
            process.stdout.readline()
            pids.append(process.pid)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
        assert [user.pid for user in users_of(str(image))] == pids[1:]


@pytest.mark.qemu
def test_what_qemu_storage_daemon_exports_is_refused(image: Path) -> None:
    exported = image.with_name("export.sock")
    arguments = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=f,filename={image},locking=on"),
        *(
            "--export",
            f"type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path={exported}",
        ),
    ]
    server = subprocess.Popen(arguments)
    try:
        while not exported.exists():
            assert server.poll() is None
            time.sleep(0.01)
        with opened(image, os.O_RDWR) as fd:
            assert not lock_image(fd, Access.READER)
            assert not lock_image(fd, Access.WRITER)
            assert [user.name for user in users_of(str(image))] == ["qemu-storage-da"]
    finally:
        server.terminate()
        server.wait()
    with opened(image, os.O_RDWR) as fd:
        assert lock_image(fd, Access.WRITER)


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("access", "writable"), [(Access.WRITER, False), (Access.SHARED, True), (Access.READER, False)]
)
def test_qemu_io_which_denies_others_nothing_writes_only_beside_sharers(
    image: Path, access: Access, writable: bool
) -> None:
    with opened(image, os.O_RDWR) as fd:
        assert lock_image(fd, access)
        command = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(image)]
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is writable
