"""Memory of machines, and the broker that moves it between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nagaya.models.memory import MemoryAnswer, MemoryMove
from nagaya.models.shares import ChangesAnswer
from nagaya.sdk.tenants import Settings, patch

if TYPE_CHECKING:
    from nagaya.sdk.client import Client


class Memory:
    """`client.memory`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def show(self) -> MemoryAnswer:
        """Memory of the machines that run, and the moves that the broker would make now."""
        return MemoryAnswer.from_json(self._client.request("GET", "/v1/memory"))

    def moves(self, since: int = 60) -> list[MemoryMove]:
        """What the broker moved in the last `since` seconds, oldest first."""
        answer = self._client.request("GET", "/v1/memory/moves", query={"since": since})
        return [MemoryMove.from_json(one) for one in answer]

    def set(self, settings: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set the broker's settings: `{"budget": "12GiB", "broker": True}`; "none" is the default."""
        return patch(self._client, "/v1/memory", settings, dry_run)
