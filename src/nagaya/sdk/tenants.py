"""Tenants, and what setting fields shares between them and machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from nagaya.models.shares import ChangesAnswer, TenantInfo

if TYPE_CHECKING:
    from nagaya.sdk.client import Client

Settings = Mapping[str, object] | Iterable[tuple[str, object]]


class Tenants:
    """`client.tenants`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[TenantInfo]:
        """Those that have machines or knobs, by name."""
        return [TenantInfo.from_json(one) for one in self._client.request("GET", "/v1/tenants")]

    def get(self, name: str) -> TenantInfo:
        """One tenant; one that nobody has heard of has the defaults."""
        return TenantInfo.from_json(self._client.request("GET", _tenant(name)))

    def set(self, name: str, settings: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set knobs of all its machines together, all or none, live: `{"disk.weight": 300}`."""
        return patch(self._client, _tenant(name), settings, dry_run)


def patch(client: Client, path: str, settings: Settings, dry_run: bool) -> ChangesAnswer:
    """Set fields of what is at `path`."""
    pairs = settings.items() if isinstance(settings, Mapping) else settings
    body = {"set": [{"field": field, "value": value} for field, value in pairs]}
    answer = client.request("PATCH", path, body=body, query={"dry_run": dry_run})
    return ChangesAnswer.from_json(answer)


def _tenant(name: str) -> str:
    return f"/v1/tenants/{quote(name.removeprefix('@'), safe='')}"
