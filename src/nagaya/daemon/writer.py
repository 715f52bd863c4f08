"""The one thread that writes the state, so that a slow disk never stops the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from nagaya.daemon.state import State

P = ParamSpec("P")
T = TypeVar("T")


class Writer:
    """Runs methods of `State` in order, each on disk when awaited."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._thread = ThreadPoolExecutor(1, "state")

    async def call(self, method: Callable[Concatenate[State, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`await writer.call(State.save_machine, row, "x")` finishes even if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, lambda: method(self.state, *args, **kwargs))
        return await asyncio.shield(work)

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._thread.shutdown(wait=True)
        self.state.close()
