"""The connection to a daemon: requests, streams and websockets over its unix socket, and their errors.

A command of the command line is one request long, and importing `http.client` (with `email` and `ssl`) would
take 20 ms of it. So a request is asked in HTTP/1.0, where an answer ends with its connection and comes
unchunked (RFC 9112, section 6.3), and read right here; what streams is left to the library.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from nagaya.closing import Closing
from nagaya.errors import (
    NagayaError,
    PermissionDeniedError,
    ProtocolError,
    TimeoutExpiredError,
    UnavailableError,
)
from nagaya.paths import Paths

ANSWER_TIME = 30.0  # s for what the daemon answers at once
POLL_TIME = 20.0  # s that one long poll lasts at the daemon
_PIECE = 64 * 1024


class Connection(Closing):
    """A connection to the daemon of `paths` (default: this user's). Use it as a context manager.

    Each request has a unix socket of its own, which costs less than sharing one: threads may use it at will.
    `start` is called when nobody listens, to start a daemon; without it that is an `UnavailableError`.
    """

    def __init__(self, paths: Paths | None = None, *, start: Callable[[Paths], object] | None = None) -> None:
        self.paths = paths or Paths.default()
        self._start = start

    def close(self) -> None:
        """Let go of the daemon. Idempotent."""

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        query: Mapping[str, object] | None = None,
        within: float = ANSWER_TIME,
    ) -> Any:
        """One request; the decoded answer, or the error that the daemon sent."""
        content = b"" if body is None else json.dumps(body, default=_plain).encode()
        kind = "Content-Type: application/json\r\n" if content else ""
        head = (
            f"{method} {_target(path, query or {})} HTTP/1.0\r\nHost: nagaya\r\n"
            f"{kind}Content-Length: {len(content)}\r\n\r\n"
        )
        with _reachable(self.paths), self._dial(within) as peer:
            peer.sendall(head.encode("ascii") + content)
            status, answer = _split(b"".join(iter(lambda: peer.recv(_PIECE), b"")))
        return _decoded(path, status, answer)

    def stream(self, path: str, **query: object) -> Iterator[bytes]:
        """The body of an endless answer, piece by piece."""
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("nagaya")
        try:
            with _reachable(self.paths):
                peer = connection.sock = self._dial(ANSWER_TIME)
                connection.request("GET", _target(path, query))
                with connection.getresponse() as answer:
                    if answer.status >= 400:
                        raise _error_of(answer.status, answer.read())
                    peer.settimeout(None)
                    while piece := answer.read1(_PIECE):
                        yield piece
        except HTTPException as error:
            raise _unavailable(self.paths) from error
        finally:
            connection.close()

    def _dial(self, within: float) -> socket.socket:
        try:
            return _connected(self.paths, within)
        except (FileNotFoundError, ConnectionRefusedError):
            if self._start is None:
                raise
        self._start(self.paths)
        return _connected(self.paths, within)

    @contextmanager
    def websocket(self, path: str, **query: object) -> Iterator[Any]:
        """A `websockets.sync` connection to `path`."""
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import unix_connect

        uri = f"ws://nagaya{_target(path, query)}"
        with _reachable(self.paths):
            try:
                connection = unix_connect(
                    str(self.paths.api_socket), uri=uri, compression=None, max_size=2**22
                )
            except InvalidStatus as error:
                raise _error_of(error.response.status_code, bytes(error.response.body or b"")) from error
        with connection:
            yield connection


def _connected(paths: Paths, within: float) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(within)
        peer.connect(str(paths.api_socket))
    except BaseException:
        peer.close()
        raise
    return peer


@contextmanager
def _reachable(paths: Paths) -> Iterator[None]:
    """Turn what a connection can fail with into errors that say what to do."""
    try:
        yield
    except TimeoutError as error:
        raise TimeoutExpiredError(
            f"the daemon at {paths.api_socket} did not answer in time", hint="look at `nagaya daemon status`"
        ) from error
    except OSError as error:
        if isinstance(error, PermissionError) or "Permission denied" in str(error):
            raise PermissionDeniedError(
                f"you may not use the daemon at {paths.api_socket}",
                hint="become root, or have an administrator add you to the group nagaya",
            ) from error
        raise _unavailable(paths) from error


def _unavailable(paths: Paths) -> UnavailableError:
    return UnavailableError(
        f"no daemon answers at {paths.api_socket}", hint="start one with `nagaya daemon start`"
    )


def _split(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer. Raises `ConnectionError` if it is cut or no HTTP."""
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    version, _, status = start.partition(" ")
    length = fields.get("content-length", str(len(body)))
    if not version.startswith("HTTP/1.") or not status[:3].isdecimal() or length != str(len(body)):
        raise ConnectionError("the answer is cut, or none of HTTP")
    return int(status[:3]), body


def _decoded(path: str, status: int, content: bytes) -> Any:
    if status >= 400:
        raise _error_of(status, content)
    if status == 204:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise ProtocolError(f"the daemon's answer to {path} is not JSON") from error


def _error_of(status: int, content: bytes) -> NagayaError:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or "code" not in body:
        return ProtocolError(f"the daemon answered {status} without saying why: {content[:200]!r}")
    return NagayaError.from_json(body)


def _target(path: str, query: Mapping[str, object]) -> str:
    words = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(words)}" if words else path


def _plain(thing: Any) -> Any:
    """A pydantic model, or a mapping that `json` does not know, as JSON."""
    return thing.model_dump(mode="json") if hasattr(thing, "model_dump") else dict(thing)
