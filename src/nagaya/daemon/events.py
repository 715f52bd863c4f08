"""News for whoever listens, through bounded queues: who does not read loses news, and stops nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any]

BACKLOG = 256  # events that a slow listener may be behind; each is about 1 KiB


class Subscription:
    """One listener's queue, to iterate over. After an overflow comes `{"event": "lost", "count"}`."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue(BACKLOG)
        self._lost = 0

    def put(self, event: Event) -> None:
        """Add an event, or count it as lost."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._lost += 1

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        while True:
            if self._lost and self._queue.empty():
                lost, self._lost = self._lost, 0
                yield {"event": "lost", "count": lost}
            yield await self._queue.get()


class Events:
    """Where news are published."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def publish(self, event: Event) -> None:
        """Give `event` to every listener."""
        for subscription in self._subscriptions:
            subscription.put(event)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Listen as long as the context lasts."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
