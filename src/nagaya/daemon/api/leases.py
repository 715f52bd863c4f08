"""`/v1/leases`: who may use which image, who waits, and how it changes hands."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon.daemon import Daemon
from nagaya.daemon.handover import Handover
from nagaya.daemon.leaseviews import LeaseViews
from nagaya.daemon.remoteleases import RemoteLeases
from nagaya.daemon.supervisor import STOP_TIME
from nagaya.models.history import JournalEntry
from nagaya.models.lease import BreakInfo, LeaseInfo, LeaseWait
from nagaya.plane.imagelock import Access
from nagaya.resources.leases import TTL_MAX_S, TTL_MIN_S, Host

LeaseId = Annotated[str, Path(max_length=64)]
Name = Annotated[str, Path(description="a machine's name or id", max_length=64)]
Ttl = Annotated[float, Field(ge=TTL_MIN_S, le=TTL_MAX_S, description="seconds until it has to be renewed")]
Resource = Annotated[str, Field(max_length=4096, description="a path, MACHINE/disk0, an image or an id")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WaitBody(_Body):
    """A machine that is to have its images next."""

    machine: Annotated[str, Field(max_length=64)]
    timeout: Annotated[float, Field(ge=0, le=30 * 86400, description="seconds")] | None = None


class TransferBody(_Body):
    """An image that goes to another machine."""

    resource: Resource
    machine: Annotated[str, Field(max_length=64, description="who gets it; it is down")]
    way: Annotated[
        Literal["", "stop", "detach"], Field(description="what may be done with a holder that runs")
    ] = ""
    timeout: Annotated[float, Field(ge=0, le=86400, description="seconds for a stop")] = STOP_TIME


class BreakBody(_Body):
    """How far a break may go."""

    force: Annotated[bool, Field(description="a holder that runs is killed first")] = False


class ClaimBody(_Body):
    """Somebody on another host who wants to use an image."""

    path: Annotated[str, Field(max_length=4096, pattern=r"^/[^\x00]*$", description="absolute, on this host")]
    access: Access = Access.WRITER
    holder: Annotated[str, Field(min_length=1, max_length=64, description="a machine's name, there")]
    host: Annotated[str, Field(min_length=1, max_length=64, description="the host's name")]
    host_id: Annotated[str, Field(max_length=64, description="its /etc/machine-id; empty: its name")] = ""
    boot_id: Annotated[str, Field(max_length=64, description="of its life; may be empty")] = ""
    ttl: Ttl = 60.0


class RenewBody(_Body):
    """For how much longer."""

    ttl: Ttl = 60.0


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/leases", tags=["leases"])
    views = LeaseViews(daemon.supervisor)
    remote = RemoteLeases(daemon.supervisor.leases, views)
    handover = Handover(daemon.supervisor, views, remote)

    @routes.get("")
    async def list_leases(resource: Annotated[str, Query(max_length=4096)] = "") -> list[LeaseInfo]:
        """All leases, or those on one image: its path, MACHINE/disk0, the name of a base image, or an id."""
        return await views.all(resource)

    @routes.get("/journal")
    async def journal(resource: Annotated[str, Query(max_length=4096)] = "") -> list[JournalEntry]:
        """Refusals, grants, hand-overs and breaks, oldest first."""
        return await views.journal(resource)

    @routes.post("/waiters", status_code=202)
    async def wait(body: WaitBody) -> LeaseWait:
        """Queue a machine for all its images; it keeps its place when it asks again."""
        return await handover.wait(body.machine, body.timeout)

    @routes.get("/waiters/{name}")
    async def waiting(name: Name, wait: Annotated[float, Query(ge=0, le=60)] = 0.0) -> LeaseWait:
        """Its place in the queue; with `wait` a long poll for its end."""
        return await handover.waiting(name, wait)

    @routes.delete("/waiters/{name}", status_code=204)
    async def give_up(name: Name) -> None:
        """It does not wait any more, and what is reserved for it is free."""
        await handover.give_up(name)

    @routes.post("/transfer")
    async def transfer(body: TransferBody) -> LeaseWait:
        """Hand an image over; answers when it is reserved for the machine."""
        return await handover.transfer(body.resource, body.machine, body.way, body.timeout)

    @routes.post("/claim", status_code=201)
    async def claim(body: ClaimBody) -> LeaseInfo:
        """A lease for a holder on another host, who renews it."""
        host = Host(body.host, body.host_id or body.host, body.boot_id)
        return await remote.claim(body.path, body.access, host, body.holder, body.ttl)

    @routes.post("/{lease_id}/renew")
    async def renew(lease_id: LeaseId, body: RenewBody) -> LeaseInfo:
        """The holder on another host is alive."""
        return await remote.renew(lease_id, body.ttl)

    @routes.delete("/{lease_id}", status_code=204)
    async def release(lease_id: LeaseId) -> None:
        """The holder on another host needs it no more."""
        await remote.release(lease_id)

    @routes.post("/{lease_id}/break")
    async def break_lease(lease_id: LeaseId, body: BreakBody | None = None) -> BreakInfo:
        """End a lease against its holder's will, after the holder."""
        return await handover.break_lease(lease_id, force=body is not None and body.force)

    return routes
