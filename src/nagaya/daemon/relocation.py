"""Moves the memory of machines that run, one order at a time each (docs/memory.md, "Relocation")."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nagaya.daemon.supervised import UP
from nagaya.knobs import Size
from nagaya.models.relocation import MemoryPlace, RelocationAnswer
from nagaya.resources import relocation
from nagaya.resources.guestmemory import Where
from nagaya.resources.relocation import Relocated
from nagaya.units import human_size

if TYPE_CHECKING:
    from nagaya.daemon.supervised import Supervised
    from nagaya.daemon.supervisor import Supervisor

Kind = Literal["swap", "resident", "huge", "small", "node"]


class Order(BaseModel):
    """Where memory is to go: one of these."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    swap: Size | None = Field(None, gt=0, description="bytes to the host's swap, the coldest first")
    resident: bool = Field(False, description="all that is swapped out comes back")
    huge: bool | None = Field(None, description="into huge pages, or out of them")
    node: int | None = Field(None, ge=0, description="to this NUMA node, now and from now on")

    @model_validator(mode="after")
    def _one(self) -> Order:
        if len(self.model_dump(exclude_none=True, exclude_defaults=True)) != 1:
            raise ValueError("name one of swap, resident, huge and node")
        return self


async def relocate(supervisor: Supervisor, name: str, order: Order) -> RelocationAnswer:
    """Do it, and say what came of it. Raises `ConflictError` for a machine that does not run.

    Raises what `nagaya.resources.relocation` raises where the host cannot.
    """
    one = supervisor.get(name)
    async with one.lock:
        one.require(UP, "relocated", hint=f"nagaya start {one.name}")
        kind, act = _act(supervisor, one, order)
        began = time.monotonic()
        result = await asyncio.to_thread(act)
    answer = RelocationAnswer(
        name=one.name,
        kind=kind,
        asked=result.asked,
        done=result.done,
        how=result.how,
        seconds=round(time.monotonic() - began, 6),
        before=_place(result.before),
        after=_place(result.after),
    )
    detail = f"{kind}: {human_size(result.done)} of {human_size(result.asked)}"
    await supervisor.note(one, "memory relocated", detail)
    supervisor.events.publish({"event": "relocation", "id": one.row.id, "name": one.name, "detail": detail})
    return answer


def _act(supervisor: Supervisor, one: Supervised, order: Order) -> tuple[Kind, Callable[[], Relocated]]:
    pid, group = one.require_process().id.pid, supervisor.parts.group(one.row.id)
    if order.swap is not None:
        size = order.swap
        return "swap", lambda: relocation.page_out(pid, size, group)
    if order.node is not None:
        node = order.node
        return "node", lambda: relocation.move(pid, node, group)
    if order.huge is not None:
        kind: Kind = "huge" if order.huge else "small"
        act = relocation.collapse if order.huge else relocation.split
        return kind, lambda: act(pid)
    return "resident", lambda: relocation.bring_back(pid)


def _place(where: Where) -> MemoryPlace:
    nodes = {str(node): size for node, size in where.nodes.items()}
    return MemoryPlace(where.resident, where.swapped, where.huge, nodes)
