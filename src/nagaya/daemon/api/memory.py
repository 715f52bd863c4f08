"""`/v1/memory`, `/v1/machines/NAME/memory` and `/v1/machines/NAME/why/memory`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from nagaya.daemon import memorywhy
from nagaya.daemon.api.machines import Name
from nagaya.daemon.api.settings import SettingsBody
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.relocation import Order, relocate
from nagaya.models.memory import MachineMemoryInfo, MemoryAnswer, MemoryMove, MemoryWhy
from nagaya.models.relocation import RelocationAnswer
from nagaya.models.shares import ChangesAnswer

Since = Annotated[int, Query(ge=1, le=3600, description="seconds")]


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["memory"])
    memory = daemon.supervisor.memory

    @routes.get("/memory")
    async def show() -> MemoryAnswer:
        """Memory of the machines that run, and the moves that the broker would make now."""
        return await memory.show()

    @routes.patch("/memory")
    async def change(body: SettingsBody, dry_run: bool = False) -> ChangesAnswer:
        """Set `broker` (whether it acts) or `budget` (what machines may have in all), in effect at once."""
        return await memory.set(body.pairs(), dry_run=dry_run)

    @routes.get("/memory/moves")
    async def moves(since: Since = 60) -> list[MemoryMove]:
        """What the broker moved, oldest first; the last 1000 moves are kept."""
        return memory.moves.since(since)

    @routes.get("/machines/{name}/memory")
    async def machine(name: Name) -> MachineMemoryInfo:
        """Memory of one machine that runs."""
        one = daemon.supervisor.get(name)
        return memorywhy.of(await memory.show(), one)

    @routes.get("/machines/{name}/why/memory")
    async def why(name: Name, since: Since = 60) -> MemoryWhy:
        """Why it has the memory that it has."""
        return await memorywhy.why(daemon.supervisor, name, since)

    @routes.post("/machines/{name}/memory")
    async def move(name: Name, order: Order) -> RelocationAnswer:
        """Move its memory while it runs: one of `swap`, `resident`, `huge` and `node`."""
        return await relocate(daemon.supervisor, name, order)

    return routes
