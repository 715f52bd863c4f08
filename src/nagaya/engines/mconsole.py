"""Sends commands to a User-mode Linux guest's management console.

The socket lies in the jail, where a hostile guest can put anything in its place. So the path is walked
without following links, and what is found must be a socket of the machine's own uid. The guest cannot answer:
its answers would go to an address outside its jail.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from nagaya.abi.mconsole import MCONSOLE_MAGIC, MCONSOLE_MAX_DATA, MCONSOLE_VERSION, MconsoleRequest


def request(command: str) -> bytes:
    """The datagram of `command`, for example "cad". Raises `ValueError` if it is too long."""
    text = command.encode()
    if len(text) >= MCONSOLE_MAX_DATA:
        raise ValueError(
            f"an mconsole command has at most {MCONSOLE_MAX_DATA - 1} bytes, this one {len(text)}"
        )
    body = MconsoleRequest(MCONSOLE_MAGIC, MCONSOLE_VERSION, len(text), text)
    return bytes(body)[: ctypes.sizeof(MconsoleRequest)]


def send(pid: int, inside: str, uid: int, command: str) -> None:
    """Send `command` to the console of process `pid`, whose socket is `inside` its root and belongs to `uid`.

    Raises `OSError`: the guest's kernel has not got that far, or is gone, or somebody tampered with the path.
    """
    with _open_socket(pid, inside) as fd:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise PermissionError(f"{inside} of process {pid} is not a socket of uid {uid}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            client.connect(f"/proc/self/fd/{fd}")
            client.send(request(command))


@contextmanager
def _open_socket(pid: int, inside: str) -> Iterator[int]:
    here = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in PurePosixPath(inside).parts[1:]:
            deeper = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = deeper
        yield here
    finally:
        os.close(here)
