"""The plane's QMP commands about who goes first at disks and networks (docs/plane.md)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from nagaya.errors import UsageError
from nagaya.plane.shares import Resource, share_from_json, share_to_json
from nagaya.plane.waits import HOUR_SECONDS, WaitRing
from nagaya.qmp import Command

_SINCE_SECONDS = 60
_NODES = 1024  # a message of QMP has 64 KiB at most anyway


class Core(Protocol):
    """What is needed of `nagaya._core.Plane`."""

    def set_shares(self, nodes: str) -> None: ...
    def set_network_shares(self, nodes: str) -> None: ...
    def query_arbiter(self) -> str: ...
    def query_demand(self, anew: bool) -> str: ...


class Arbitration:
    """Knobs go to the core, which tells all workers; what workers say of waiting is kept here.

    `in_core` runs a call of the core beside the event loop.
    """

    def __init__(self, core: Core, in_core: Callable[..., Awaitable[Any]]) -> None:
        self._core = core
        self._in_core = in_core
        self._waits = WaitRing()
        self.commands: dict[str, Command] = {
            "query-arbiter": self._query_arbiter,
            "query-demand": self._query_demand,
            "query-waits": self._query_waits,
            "set-network-shares": partial(self._set_shares, "network"),
            "set-shares": partial(self._set_shares, "disk"),
        }

    def hear(self, event: str, facts: Mapping[str, Any]) -> bool:
        """Whether `event` of the core is one for us, not for the clients."""
        if event == "ARBITER_WAITS":
            resource: Resource = "network" if facts["worker"].startswith("net-") else "disk"
            self._waits.add(facts["rows"], resource)
            return True
        return False

    async def _set_shares(self, resource: Resource, arguments: Mapping[str, object]) -> object:
        nodes = arguments.get("nodes")
        command, core = "set-shares", self._core.set_shares
        if resource == "network":
            command, core = "set-network-shares", self._core.set_network_shares
        if set(arguments) != {"nodes"} or not isinstance(nodes, list) or len(nodes) > _NODES:
            raise UsageError(f"{command} has one argument, nodes: a list of at most {_NODES}")
        checked = [_node(node) for node in nodes]
        try:
            await self._in_core(core, json.dumps(checked))
        except ValueError as error:
            raise UsageError(f"the shares cannot be so: {error}") from error
        return {}

    async def _query_arbiter(self, arguments: Mapping[str, object]) -> object:
        if arguments:
            raise UsageError(f"query-arbiter takes no arguments, not {', '.join(arguments)}")
        return json.loads(await self._in_core(self._core.query_arbiter))

    async def _query_demand(self, arguments: Mapping[str, object]) -> object:
        anew = arguments.get("anew", False)
        if set(arguments) - {"anew"} or type(anew) is not bool:
            raise UsageError("query-demand has one argument, anew: true or false")
        return json.loads(await self._in_core(self._core.query_demand, anew))

    async def _query_waits(self, arguments: Mapping[str, object]) -> object:
        node_id, since = arguments.get("id"), arguments.get("since", _SINCE_SECONDS)
        unknown = set(arguments) - {"id", "since"}
        if unknown or not isinstance(node_id, str | None):
            raise UsageError("query-waits has the arguments id, a text or null, and since, in seconds")
        if type(since) is not int or not 1 <= since <= HOUR_SECONDS:
            raise UsageError(f"since is {since!r}, not 1 to {HOUR_SECONDS} seconds")
        return [asdict(row) for row in self._waits.since(since, node_id)]


def _node(node: object) -> dict[str, object]:
    if not isinstance(node, dict):
        raise UsageError(f"share {node!r} is not an object", hint='write {"id": ..., "weight": ...}')
    if "remove" not in node:
        return share_to_json(share_from_json(node))
    if set(node) != {"id", "remove"} or node["remove"] is not True:
        raise UsageError('a node is removed with {"id": ..., "remove": true}')
    return {"id": share_from_json({"id": node["id"]}).id, "remove": True}
