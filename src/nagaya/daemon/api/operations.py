"""`/v1/operations`, `/v1/apply`, `/v1/down`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, WebSocket
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon import apply
from nagaya.daemon.api.sockets import refuse, send_events
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.supervisor import STOP_TIME
from nagaya.errors import NotFoundError, UsageError
from nagaya.models.operation import OperationInfo, OperationState
from nagaya.progress import Progress
from nagaya.spec import MachineSpec, Name, NetworkSpec, SecurityGroup, Tenant

MACHINES_LIMIT = 1000  # that one request may name

OperationId = Annotated[str, Path(max_length=64)]


class ApplyBody(BaseModel):
    """What is to be so."""

    model_config = ConfigDict(extra="forbid")

    machines: Annotated[list[MachineSpec], Field(max_length=MACHINES_LIMIT)] = []
    images: Annotated[dict[Name, dict[str, Any]], Field(max_length=MACHINES_LIMIT)] = {}
    tenants: Annotated[list[Tenant], Field(max_length=MACHINES_LIMIT)] = []
    networks: Annotated[list[NetworkSpec], Field(max_length=MACHINES_LIMIT)] = []
    groups: Annotated[list[SecurityGroup], Field(max_length=MACHINES_LIMIT)] = []
    source: Annotated[str, Field(max_length=4096, description="what this comes from, for `prune`")] = ""
    recreate: Annotated[bool, Field(description="running machines may be stopped to change them")] = False
    prune: Annotated[
        bool, Field(description="delete what the same source made before and leaves out now")
    ] = False


class DownBody(BaseModel):
    """Machines to stop and delete."""

    model_config = ConfigDict(extra="forbid")

    machines: Annotated[list[str], Field(max_length=MACHINES_LIMIT)]
    keep: Annotated[bool, Field(description="stop them only")] = False
    timeout: Annotated[float, Field(ge=0, le=86400, description="seconds")] = STOP_TIME


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["operations"])
    operations = daemon.operations

    @routes.get("/operations")
    async def list_operations() -> list[OperationInfo]:
        """Those that run or ran lately, oldest first."""
        return operations.all()

    @routes.get("/operations/{operation_id}")
    async def show(
        operation_id: OperationId,
        after: Annotated[int, Query(ge=0, description="answer when the revision is above this")] = 0,
        wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait for that")] = 0.0,
    ) -> OperationInfo:
        """One operation, with `wait` and `after` a long poll."""
        return await operations.wait(operation_id, after, wait)

    @routes.post("/operations/{operation_id}/cancel")
    async def cancel(operation_id: OperationId) -> OperationInfo:
        """Stop it; answers when it has cleaned up."""
        return await operations.cancel(operation_id)

    @routes.websocket("/operations/{operation_id}/ws")
    async def watch(socket: WebSocket, operation_id: str) -> None:
        try:
            operations.get(operation_id)
        except NotFoundError as error:
            await refuse(socket, error)
            return
        await socket.accept()
        await send_events(socket, _progress(daemon, operation_id))
        await socket.close()

    @routes.post("/apply", status_code=202)
    async def up(body: ApplyBody) -> OperationInfo:
        """Make it so: build what is missing, create, change and start machines. Idempotent."""
        names = [spec.name for spec in body.machines]
        for field in ("machines", "tenants", "networks", "groups"):
            given = [one.name for one in getattr(body, field)]
            if len(set(given)) < len(given):
                raise UsageError(f"{field}: a name comes twice", field=field)
        if body.prune and not body.source:
            raise UsageError("prune: it needs `source`, to know what is its own", field="prune")
        recipes = {name: daemon.parts.images.recipe(recipe) for name, recipe in body.images.items()}
        request = apply.Request(
            body.machines,
            recipes,
            body.source,
            body.recreate,
            body.prune,
            tenants=body.tenants,
            networks=body.networks,
            groups=body.groups,
        )
        apply.plan(daemon, request)

        async def work(progress: Progress) -> dict[str, Any]:
            return await apply.up(daemon, request, progress)

        return await operations.start("up", ", ".join(names)[:200], work)

    @routes.post("/down", status_code=202)
    async def down(body: DownBody) -> OperationInfo:
        """Stop machines and delete them; names that do not exist are passed over."""

        async def work(progress: Progress) -> dict[str, Any]:
            return await apply.down(
                daemon, body.machines, keep=body.keep, seconds=body.timeout, progress=progress
            )

        return await operations.start("down", ", ".join(body.machines)[:200], work)

    return routes


async def _progress(daemon: Daemon, operation_id: str) -> AsyncIterator[dict[str, Any]]:
    info = daemon.operations.get(operation_id)
    yield asdict(info)
    while info.state is OperationState.RUNNING:
        info = await daemon.operations.wait(operation_id, info.revision, 60)
        yield asdict(info)
