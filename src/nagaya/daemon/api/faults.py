"""`/v1/machines/NAME/faults` and `.../disks/N/faults`: faults on purpose, to test what runs in the guest."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon.api.machines import Name
from nagaya.daemon.conditions import list_faults, set_faults
from nagaya.daemon.daemon import Daemon
from nagaya.models.fault import DiskFaults

DiskNumber = Annotated[int, Path(ge=0, le=63, description="a disk of the machine, counted from 0")]
Delay = Annotated[int, Field(ge=0, le=60_000_000, description="µs")]
Rate = Annotated[float, Field(ge=0, le=1, description="part of the requests, 0 to 1")]


class FaultsBody(BaseModel):
    """What the requests of a disk shall suffer."""

    model_config = ConfigDict(extra="forbid")

    latency_us: Annotated[Delay, Field(description="µs that every request waits before it is served")] = 0
    jitter_us: Annotated[Delay, Field(description="µs that it waits longer at most, at random")] = 0
    error_rate: Annotated[Rate, Field(description="part of the requests that fail")] = 0.0
    error: Annotated[
        Literal["EIO", "ENOSPC"],
        Field(description="how: the guest is told of an I/O error, or a write waits as on a full host"),
    ] = "EIO"
    torn_write_rate: Annotated[
        Rate, Field(description="part of the writes that fail after their first sectors were written")
    ] = 0.0
    stuck: Annotated[bool, Field(description="no request is answered")] = False
    full: Annotated[bool, Field(description="writes find no space on the host, and wait")] = False
    operations: Annotated[
        list[Literal["read", "write", "flush", "discard"]],
        Field(max_length=4, description="what all this is about; everything if empty"),
    ] = []
    seed: Annotated[
        int, Field(ge=0, lt=2**63, description="the same requests meet the same faults again")
    ] = 0


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/machines", tags=["faults"])
    supervisor = daemon.supervisor

    @routes.get("/{name}/faults")
    async def list_(name: Name) -> list[DiskFaults]:
        """The disks upon which there are faults, and how many requests these have met."""
        return await list_faults(supervisor, name)

    @routes.put("/{name}/disks/{disk}/faults", status_code=204)
    async def put(name: Name, disk: DiskNumber, body: FaultsBody) -> None:
        """Lay faults upon a disk in the place of those that are there; in effect when this answers."""
        await set_faults(supervisor, name, disk, body.model_dump())

    @routes.delete("/{name}/disks/{disk}/faults", status_code=204)
    async def delete(name: Name, disk: DiskNumber) -> None:
        """End them."""
        await set_faults(supervisor, name, disk, None)

    return routes
