"""The connection to a daemon: requests, streams and websockets over its unix socket, and their errors."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx2

from nagaya.errors import (
    NagayaError,
    PermissionDeniedError,
    ProtocolError,
    TimeoutExpiredError,
    UnavailableError,
)
from nagaya.paths import Paths

ANSWER_TIME = 30.0  # s for what the daemon answers at once


class Connection:
    """A connection to the daemon of `paths` (default: this user's). Use it as a context manager."""

    def __init__(self, paths: Paths | None = None) -> None:
        self.paths = paths or Paths.default()
        # A unix socket has no TLS; without `verify=False` its authorities are loaded all the same, in 60 ms.
        transport = httpx2.HTTPTransport(uds=str(self.paths.api_socket), verify=False)
        self._http = httpx2.Client(transport=transport, base_url="http://nagaya")
        self._reached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

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
        with _reachable(self.paths):
            self._reach()
            answer = self._http.request(method, path, json=body, params=_query(query or {}), timeout=within)
        return _decoded(answer)

    def stream(self, path: str, **query: object) -> Iterator[bytes]:
        """The body of an endless answer, piece by piece."""
        with (
            _reachable(self.paths),
            self._http.stream(
                "GET", path, params=_query(query), timeout=httpx2.Timeout(ANSWER_TIME, read=None)
            ) as answer,
        ):
            if answer.status_code >= 400:
                answer.read()
                _decoded(answer)
            yield from answer.iter_raw()

    def _reach(self) -> None:
        """Connect once by hand: httpcore leaves its socket open where it cannot connect."""
        if not self._reached:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.paths.api_socket))
            self._reached = True

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


@contextmanager
def _reachable(paths: Paths) -> Iterator[None]:
    """Turn what a connection can fail with into errors that say what to do."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise TimeoutExpiredError(
            f"the daemon at {paths.api_socket} did not answer in time", hint="look at `nagaya daemon status`"
        ) from error
    except (httpx2.TransportError, OSError) as error:
        if isinstance(error, PermissionError) or "Permission denied" in str(error):
            raise PermissionDeniedError(
                f"you may not use the daemon at {paths.api_socket}",
                hint="become root, or have an administrator add you to the group nagaya",
            ) from error
        raise UnavailableError(
            f"no daemon answers at {paths.api_socket}", hint="start one with `nagaya daemon start`"
        ) from error


def _decoded(answer: httpx2.Response) -> Any:
    if answer.status_code >= 400:
        raise _error_of(answer.status_code, answer.content)
    if answer.status_code == 204:
        return None
    try:
        return answer.json()
    except ValueError as error:
        raise ProtocolError(f"the daemon's answer to {answer.request.url.path} is not JSON") from error


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
