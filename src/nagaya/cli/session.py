"""What one invocation of the command line shares: how to print, and the connection to the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from nagaya.sdk import Client


def _connect() -> Client:
    from nagaya.sdk import Client, ensure_daemon

    return Client(start=ensure_daemon)


@dataclass
class Session:
    """The shared options of an invocation. `connect` makes the client; the daemon is started if none runs."""

    format: str = "table"
    quiet: bool = False
    no_color: bool = False
    debug: bool = False
    failure_status: int = 0  # exit status for our own failures where the guest's statuses come through
    connect: Callable[[], Client] = _connect
    _client: Client | None = field(default=None, init=False)

    @property
    def client(self) -> Client:
        """The connection to the daemon, made at first use."""
        if self._client is None:
            self._client = self.connect()
        return self._client

    def colors(self, stream: TextIO) -> bool:
        """Whether to colour what goes to `stream` (https://no-color.org)."""
        return stream.isatty() and not self.no_color and not os.environ.get("NO_COLOR")

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None
