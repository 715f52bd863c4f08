"""Commands to a guest's management console, and what a hostile guest may put in its place."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.abi.mconsole import MconsoleRequest
from nagaya.engines import mconsole
from nagaya.testing.scratch import make_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    top = make_directory()
    yield top
    shutil.rmtree(top)


def test_a_command_arrives_as_the_kernel_wants_it(directory: Path) -> None:
    path = directory / "mconsole"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
        console.bind(str(path))
        mconsole.send(os.getpid(), str(path), os.getuid(), "cad")
        request = MconsoleRequest.from_buffer_copy(console.recv(4096))
    assert (request.magic, request.version, request.len, request.data) == (0xCAFEBABE, 2, 3, b"cad")


def test_a_command_has_a_bound() -> None:
    assert len(mconsole.request("x" * 511)) == 524
    with pytest.raises(ValueError, match="at most 511 bytes"):
        mconsole.request("x" * 512)


def test_links_are_not_followed(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
        console.bind(str(directory / "real"))
        (directory / "link").symlink_to(directory / "real")
        (directory / "elsewhere").symlink_to(directory)
        for path in (directory / "link", directory / "elsewhere/real"):
            with pytest.raises(OSError, match=r"not a socket|Not a directory|symbolic links"):
                mconsole.send(os.getpid(), str(path), os.getuid(), "cad")
        console.setblocking(False)
        with pytest.raises(BlockingIOError):
            console.recv(1)


def test_anothers_socket_and_a_plain_file_are_refused(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(PermissionError, match="is not a socket of uid"):
        mconsole.send(os.getpid(), str(directory / "file"), os.getuid(), "cad")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
        console.bind(str(directory / "real"))
        with pytest.raises(PermissionError, match="is not a socket of uid"):
            mconsole.send(os.getpid(), str(directory / "real"), os.getuid() + 1, "cad")


def test_a_missing_console_is_an_error(directory: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mconsole.send(os.getpid(), str(directory / "none"), os.getuid(), "cad")
