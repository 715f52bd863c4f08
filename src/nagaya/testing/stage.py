"""A daemon in this process, again and again on the same directories."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.main import running
from nagaya.daemon.parts import Parts
from nagaya.paths import Paths
from nagaya.testing.stores import fake_parts

Scene = Callable[[Daemon], Awaitable[None]]


class Stage:
    """Plays scenes, each with a new daemon that takes over what the last one left."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths

    def play(self, scene: Scene, parts: Parts | None = None) -> None:
        """Run `scene` inside a daemon's life, on fakes unless `parts` says otherwise."""

        async def life() -> None:
            async with running(self.paths, parts or fake_parts(self.paths)) as daemon:
                await scene(daemon)

        asyncio.run(life())

    def clear(self) -> None:
        """Delete all machines."""

        async def scene(daemon: Daemon) -> None:
            for one in daemon.supervisor.all():
                await daemon.supervisor.delete(one.row.id, force=True)

        self.play(scene)
