"""The connection to a daemon: requests, streams and websockets over its unix socket, and their errors."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from nagaya.errors import (
    NagayaError,
    PermissionDeniedError,
    ProtocolError,
    TimeoutExpiredError,
    UnavailableError,
)
from nagaya.paths import Paths

ANSWER_TIME = 30.0  # s for what the daemon answers at once
_PIECE = 64 * 1024


class Connection:
    """A connection to the daemon of `paths` (default: this user's). Use it as a context manager.

    Each request has a unix socket of its own, which costs less than sharing one: threads may use it at will.
    """

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or Paths.default()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        with _reachable(self.paths), self._answer(method, path, body, query or {}, within) as answer:
            return _decoded(path, answer.status, answer.read())

    def stream(self, path: str, **query: object) -> Iterator[bytes]:
        """The body of an endless answer, piece by piece."""
        with (
            _reachable(self.paths),
            self._answer("GET", path, None, query, ANSWER_TIME, endless=True) as answer,
        ):
            if answer.status >= 400:
                raise _error_of(answer.status, answer.read())
            while piece := answer.read1(_PIECE):
                yield piece

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, object],
        within: float,
        *,
        endless: bool = False,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(str(self.paths.api_socket), within)
        try:
            words = urlencode(_query(query))
            content = None if body is None else json.dumps(body).encode()
            headers = {} if content is None else {"Content-Type": "application/json"}
            connection.request(method, f"{path}?{words}" if words else path, content, headers)
            stream = connection.sock  # `getresponse` may hand it over to the answer
            with connection.getresponse() as answer:
                if endless:
                    stream.settimeout(None)
                yield answer
        finally:
            connection.close()

    @contextmanager
    def websocket(self, path: str, **query: object) -> Iterator[Any]:
        """A `websockets.sync` connection to `path`."""
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import unix_connect

        uri = f"ws://nagaya{path}?{urlencode(_query(query))}"
        with _reachable(self.paths):
            try:
                connection = unix_connect(
                    str(self.paths.api_socket), uri=uri, compression=None, max_size=2**22
                )
            except InvalidStatus as error:
                raise _error_of(error.response.status_code, bytes(error.response.body or b"")) from error
        with connection:
            yield connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, within: float) -> None:
        super().__init__("nagaya", timeout=within)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextmanager
def _reachable(paths: Paths) -> Iterator[None]:
    """Turn what a connection can fail with into errors that say what to do."""
    try:
        yield
    except TimeoutError as error:
        raise TimeoutExpiredError(
            f"the daemon at {paths.api_socket} did not answer in time", hint="look at `nagaya daemon status`"
        ) from error
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, PermissionError) or "Permission denied" in str(error):
            raise PermissionDeniedError(
                f"you may not use the daemon at {paths.api_socket}",
                hint="become root, or have an administrator add you to the group nagaya",
            ) from error
        raise UnavailableError(
            f"no daemon answers at {paths.api_socket}", hint="start one with `nagaya daemon start`"
        ) from error


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


def _query(query: Mapping[str, object]) -> dict[str, str]:
    return {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in query.items()
        if value is not None
    }
