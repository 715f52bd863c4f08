"""Settings in the body of a PATCH, and `/v1/tenants`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon.daemon import Daemon
from nagaya.models.shares import ChangesAnswer, TenantInfo

TenantName = Annotated[str, Path(description="a tenant's name, without the @", max_length=63)]


class Setting(BaseModel):
    """One field and its new value; null or "none" is its default."""

    model_config = ConfigDict(extra="forbid")

    field: Annotated[str, Field(max_length=100, description="disk.weight, disks[0].share.limit")]
    value: bool | int | float | Annotated[str, Field(max_length=4096)] | None


class SettingsBody(BaseModel):
    """What to set, in this order, all or nothing."""

    model_config = ConfigDict(extra="forbid")

    set: Annotated[list[Setting], Field(min_length=1, max_length=100)]

    def pairs(self) -> list[tuple[str, object]]:
        """Fields and values."""
        return [(setting.field, setting.value) for setting in self.set]


def router(daemon: Daemon) -> APIRouter:
    """The routes of tenants."""
    routes = APIRouter(prefix="/tenants", tags=["tenants"])
    shares = daemon.supervisor.shares

    @routes.get("")
    async def list_tenants() -> list[TenantInfo]:
        """The tenants that have machines or knobs, by name."""
        return shares.all_tenants()

    @routes.get("/{name}")
    async def show(name: TenantName) -> TenantInfo:
        """One tenant; one that nobody has heard of has the defaults."""
        return shares.tenant(name)

    @routes.patch("/{name}")
    async def change(name: TenantName, body: SettingsBody, dry_run: bool = False) -> ChangesAnswer:
        """Set knobs of a tenant, all or none, live."""
        return await shares.set_tenant(name, body.pairs(), dry_run=dry_run)

    return routes
