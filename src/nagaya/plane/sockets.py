"""Unix sockets that the plane listens on: right mode from the first moment, gone when closed."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from nagaya.closing import Closing
from nagaya.errors import ConflictError


class Listener(Closing):
    """A listening SOCK_STREAM unix socket at `path`, mode 0600, owned by `uid:gid` where given.

    A stale socket file (nobody listens) is replaced. Raises `ConflictError` if somebody does listen there or
    the path is another kind of file, and `OSError` on a refusal of the kernel.
    """

    def __init__(self, path: str, *, uid: int = -1, gid: int = -1, backlog: int = 16) -> None:
        self._path = Path(path)
        _remove_stale(self._path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bind()
            self._inode = self._path.lstat().st_ino
            if (uid, gid) != (-1, -1):
                os.lchown(path, uid, gid)
            self.socket.listen(backlog)
        except BaseException:
            self.socket.close()
            raise

    def _bind(self) -> None:
        mask = os.umask(0o177)  # a chmod after bind would leave a moment in which others can connect
        try:
            self.socket.bind(str(self._path))
        finally:
            os.umask(mask)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Stop listening and remove the file, unless somebody put another one there. Idempotent."""
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"{path} exists and is not a socket", hint="remove it if nothing needs it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        else:
            raise ConflictError(
                f"another process listens on {path}", hint=f"find it with: ss -xlp src {path}"
            )
    path.unlink(missing_ok=True)
