"""Listening sockets have their mode at once and leave nothing behind."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from nagaya.errors import ConflictError
from nagaya.plane.sockets import Listener


def test_only_the_owner_may_connect_and_the_file_goes_with_the_listener(directory: Path) -> None:
    path = directory / "s"
    with Listener(str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.root
def test_the_file_belongs_to_the_machine(directory: Path) -> None:
    path = directory / "s"
    with Listener(str(path), uid=12345, gid=54321):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_stale_socket_is_replaced(directory: Path) -> None:
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Listener(str(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_is_not_taken_away(directory: Path) -> None:
    path = directory / "s"
    with Listener(str(path)):
        with pytest.raises(ConflictError, match="another process listens"):
            Listener(str(path))
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(directory: Path) -> None:
    path = directory / "s"
    path.write_text("mine")
    with pytest.raises(ConflictError, match="not a socket"):
        Listener(str(path))
    assert path.read_text() == "mine"


def test_a_socket_that_somebody_else_put_there_stays(directory: Path) -> None:
    path = directory / "s"
    first = Listener(str(path))
    path.rename(directory / "moved")
    with Listener(str(path)):
        first.close()
        assert path.exists()
    (directory / "moved").unlink()
