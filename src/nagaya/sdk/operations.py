"""Long jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nagaya.connection import POLL_TIME
from nagaya.errors import NagayaError
from nagaya.models.operation import OperationInfo, OperationState

if TYPE_CHECKING:
    from nagaya.sdk.client import Client


class Operations:
    """`client.operations`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Operation]:
        """The operations that run or ran lately, oldest first."""
        answer = self._client.request("GET", "/v1/operations")
        return [Operation(self._client, OperationInfo.from_json(one)) for one in answer]

    def get(self, operation_id: str) -> Operation:
        """One of them."""
        answer = self._client.request("GET", f"/v1/operations/{quote(operation_id, safe='')}")
        return Operation(self._client, OperationInfo.from_json(answer))

    def begin(self, path: str, body: object = None, *, method: str = "POST") -> Operation:
        """Send `body` to `path`, which answers with a new operation."""
        return Operation(self._client, OperationInfo.from_json(self._client.request(method, path, body=body)))


class Operation:
    """A long job of the daemon. It goes on without us; `info` is what the last answer said."""

    def __init__(self, client: Client, info: OperationInfo) -> None:
        self._client = client
        self.info = info

    def watch(self) -> Iterator[OperationInfo]:
        """Its progress, first what is known, then each change, until it has ended."""
        yield self.info
        path = f"/v1/operations/{self.info.id}"
        while self.info.state == OperationState.RUNNING:
            answer = self._client.request(
                "GET", path, query={"wait": POLL_TIME, "after": self.info.revision}, within=POLL_TIME + 30
            )
            previous, self.info = self.info, OperationInfo.from_json(answer)
            if self.info.revision != previous.revision:
                yield self.info

    def wait(self, watcher: Callable[[OperationInfo], None] | None = None) -> dict[str, Any]:
        """Wait for its end. Returns its result, or raises its error."""
        for info in self.watch():
            if watcher is not None:
                watcher(info)
        if self.info.error is not None:
            raise NagayaError.from_json(self.info.error)
        return self.info.result or {}

    def cancel(self) -> OperationInfo:
        """Ask it to stop and wait for that; what it had half made is removed."""
        answer = self._client.request("POST", f"/v1/operations/{self.info.id}/cancel", within=120)
        self.info = OperationInfo.from_json(answer)
        return self.info
