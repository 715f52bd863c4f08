"""A socket's file is not yet a listener."""

from __future__ import annotations

import socket
from pathlib import Path

from nagaya.testing.listening import is_listening


def test_a_socket_listens_from_listen_to_close(directory: Path) -> None:
    path = directory / "one.sock"
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        assert path.exists() and not is_listening(path)
        one.listen()
        assert is_listening(path) and not is_listening(directory / "one")
    assert not is_listening(path)
