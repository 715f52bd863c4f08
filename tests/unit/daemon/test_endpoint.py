"""The lock and the socket."""

from __future__ import annotations

import grp
import os
import socket
import stat

import pytest

from nagaya.daemon import endpoint
from nagaya.errors import ConflictError, PermissionDeniedError, ResourceError
from nagaya.paths import Paths


def test_a_second_daemon_on_one_state_directory_is_refused_and_told_who_has_it(own_paths: Paths) -> None:
    with (
        endpoint.locked(own_paths),
        pytest.raises(ConflictError, match=f"another daemon, process {os.getpid()}, uses"),
        endpoint.locked(own_paths),
    ):
        pytest.fail("both got it")
    with endpoint.locked(own_paths):
        pass


def test_the_socket_is_for_the_group_if_there_is_one(
    own_paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint.listen(own_paths.api_socket):
        mode = stat.S_IMODE(own_paths.api_socket.stat().st_mode)
        assert mode == (0o600 if endpoint._group() is None else 0o660)
    own_paths.api_socket.unlink()
    if os.geteuid() == 0:
        some = grp.getgrgid(1)
        monkeypatch.setattr(endpoint, "GROUP", some.gr_name)
        with endpoint.listen(own_paths.api_socket):
            made = own_paths.api_socket.stat()
            assert (stat.S_IMODE(made.st_mode), made.st_gid) == (0o660, some.gr_gid)


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(own_paths: Paths) -> None:
    endpoint.listen(own_paths.api_socket).close()
    assert own_paths.api_socket.exists()
    with (
        endpoint.listen(own_paths.api_socket),
        pytest.raises(ConflictError, match=f"another daemon, process {os.getpid()}, answers at"),
    ):
        endpoint.listen(own_paths.api_socket)


def test_a_file_in_the_way_is_not_removed(own_paths: Paths) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(own_paths.api_socket))
        with pytest.raises(ResourceError, match="is in the way"):
            endpoint.listen(own_paths.api_socket)


def test_peer_says_who_connects(own_paths: Paths) -> None:
    with endpoint.listen(own_paths.api_socket) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(own_paths.api_socket))
        connection, _ = listener.accept()
        with connection:
            assert endpoint.peer(connection) == (os.getpid(), os.geteuid())


def test_directories_that_cannot_be_made_are_said(own_paths: Paths) -> None:
    in_the_way = own_paths.state / "file"
    in_the_way.write_text("")
    with pytest.raises((ResourceError, PermissionDeniedError), match="cannot be made"):
        endpoint.make_directories(Paths(own_paths.run, in_the_way / "s", own_paths.cache))
