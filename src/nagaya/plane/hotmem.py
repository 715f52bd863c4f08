"""Memory that guests plug while they run: commands of the plane's QMP service."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nagaya.errors import NotFoundError, UsageError
from nagaya.qmp import Command


@dataclass(frozen=True, slots=True)
class HotMemoryStatus:
    """A row of `query-memory`; all but `id` and `connected` in bytes."""

    id: str  # "<machine id>/mem0"
    start: int  # guest-physical address of the region
    size: int  # of the region
    block: int  # what is plugged at once
    requested: int  # what the guest is to have plugged
    plugged: int  # what it has
    connected: bool  # whether the machine is there


class Core(Protocol):
    """What is needed of `nagaya._core.Plane`."""

    def set_memory(self, id: str, requested: int) -> None: ...  # noqa: A002
    def query_memory(self) -> str: ...


class HotMemory:
    """The commands `set-memory` and `query-memory`."""

    def __init__(
        self,
        core: Core,
        in_core: Callable[..., Awaitable[Any]],
        emit: Callable[[str, Mapping[str, object]], None],
        finish: Callable[[Awaitable[object]], Awaitable[object]],
    ) -> None:
        """`in_core` calls the core in a thread, `finish` runs a command to its end in any case."""
        self._core = core
        self._in_core = in_core
        self._emit = emit
        self.commands: dict[str, Command] = {
            "query-memory": self._query,
            "set-memory": lambda arguments: finish(self._set(arguments)),
        }

    async def _query(self, arguments: Mapping[str, object]) -> object:
        if arguments:
            raise UsageError("query-memory takes no arguments")
        return json.loads(await self._in_core(self._core.query_memory))

    async def _set(self, arguments: Mapping[str, object]) -> object:
        device_id, requested = arguments.get("id"), arguments.get("requested")
        if (
            not isinstance(device_id, str)
            or type(requested) is not int
            or len(arguments) != len(("id", "requested"))
        ):
            raise UsageError("set-memory has the arguments id and requested, bytes")
        if not 0 <= requested < 2**63:
            raise UsageError(f"requested of {device_id} is {requested}, outside 0 to {2**63 - 1}")
        try:
            await self._in_core(self._core.set_memory, device_id, requested)
        except KeyError as error:
            raise NotFoundError(
                f"there is no device {device_id}", hint="see query-memory", id=device_id
            ) from error
        except ValueError as error:
            raise UsageError(f"memory of {device_id}: {error}", id=device_id) from error
        self._emit("MEMORY_REQUESTED", {"id": device_id, "requested": requested})
        return {}
