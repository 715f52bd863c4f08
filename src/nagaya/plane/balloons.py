"""Balloons: what guests give back of their memory, and what they say of the rest (docs/memory.md)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nagaya.errors import NotFoundError, UsageError
from nagaya.qmp import Command

_NUMBERS = ("size", "stats_ms")


@dataclass(frozen=True, slots=True)
class BalloonStats:
    """What a guest says of its memory (virtio 1.3, 5.5.6.4), None where it says nothing.

    Nothing of it is to be relied on; only that no part is larger than the guest's memory. In bytes, but for
    the faults, which are counts since its start, as `swap_in` and `swap_out` are bytes since then.
    """

    free: int | None = None
    available: int | None = None  # without swapping, as Linux estimates it
    total: int | None = None
    caches: int | None = None
    swap_in: int | None = None
    swap_out: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None


@dataclass(frozen=True, slots=True)
class BalloonStatus:
    """A balloon. Sizes are bytes; counts are since the machine's start."""

    id: str  # "<machine id>/balloon0"
    size: int  # what the guest was asked to give
    actual: int  # what it says that it has given: a claim
    reported: int  # free pages that it reported and the host has taken
    inflated: int  # pages of the balloon that the host has taken
    deflated: int  # pages that the guest says it took back
    taken_back: int  # how often it took pages back unasked: it was out of memory, or does not obey
    driver: bool  # a driver of the guest is at work; without one nothing is ever given
    stats_ms: int  # the guest is asked for statistics so often; 0 is never
    stats: BalloonStats | None
    stats_at: int | None  # ns, CLOCK_MONOTONIC


def balloon_from_json(row: Mapping[str, Any]) -> BalloonStatus:
    """A row of `query-balloons`."""
    stats = row["stats"]
    return BalloonStatus(**{**row, "stats": None if stats is None else BalloonStats(**stats)})


class Core(Protocol):
    """What is needed of `nagaya._core.Plane`."""

    def set_balloon(self, id: str, wish: str) -> None: ...  # noqa: A002
    def query_balloons(self) -> str: ...


class Balloons:
    """The plane's QMP commands about balloons. `in_core` runs a call of the core beside the event loop."""

    def __init__(self, core: Core, in_core: Callable[..., Awaitable[Any]]) -> None:
        self._core = core
        self._in_core = in_core
        self.commands: dict[str, Command] = {
            "query-balloons": self._query,
            "set-balloon": self._set,
        }

    async def _query(self, arguments: Mapping[str, object]) -> object:
        if arguments:
            raise UsageError(f"query-balloons takes no arguments, not {', '.join(arguments)}")
        return json.loads(await self._in_core(self._core.query_balloons))

    async def _set(self, arguments: Mapping[str, object]) -> object:
        wish = dict(arguments)
        device_id = wish.pop("id", None)
        if not isinstance(device_id, str) or not wish:
            raise UsageError(
                "set-balloon has the argument id, and one or more others",
                hint='{"id": "<machine>/balloon0", "size": 134217728}',
            )
        for name, value in wish.items():
            if name not in _NUMBERS:
                raise UsageError(
                    f"set-balloon has no argument {name!r}", hint=f"it has {', '.join(_NUMBERS)}"
                )
            if type(value) is not int or value < 0:
                raise UsageError(f"{name} of set-balloon is {value!r}, not a number from 0 on")
        try:
            await self._in_core(self._core.set_balloon, device_id, json.dumps(wish))
        except KeyError as error:
            raise NotFoundError(
                f"there is no balloon {device_id}", hint="see query-balloons", id=device_id
            ) from error
        except ValueError as error:
            raise UsageError(f"balloon {device_id}: {error}", hint='docs/plane.md, "Devices"') from error
        return {}
