"""`/v1/networks` and `/v1/groups`: what machines are plugged into, and what their NICs are allowed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from nagaya.daemon import ports
from nagaya.daemon.api.machines import Name
from nagaya.daemon.api.settings import SettingsBody
from nagaya.daemon.daemon import Daemon
from nagaya.errors import UsageError
from nagaya.models.machine import MachineInfo
from nagaya.models.network import GroupInfo, NetworkInfo, PortInfo
from nagaya.models.shares import ChangesAnswer
from nagaya.spec import NetworkSpec, Nic, SecurityGroup

NetworkName = Annotated[str, Path(description="a network's name", max_length=64)]
NicName = Annotated[str, Path(description="net0, or the network that it is on", max_length=64)]
GroupName = Annotated[str, Path(description="a security group's name", max_length=64)]


class LinkBody(BaseModel):
    """Whether the cable is plugged."""

    model_config = ConfigDict(extra="forbid")

    up: bool


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["networks"])
    _networks(routes, daemon)
    _groups(routes, daemon)
    _nics(routes, daemon)
    return routes


def _networks(routes: APIRouter, daemon: Daemon) -> None:
    networks = daemon.supervisor.networks

    @routes.get("/networks")
    async def list_networks() -> list[NetworkInfo]:
        """All networks, by name."""
        return [networks.info(one) for one in networks.all()]

    @routes.post("/networks", status_code=201)
    async def create(spec: NetworkSpec) -> NetworkInfo:
        """Make a network; it comes up with the first machine on it."""
        return networks.info(await networks.create(spec))

    @routes.get("/networks/{name}")
    async def show(name: NetworkName) -> NetworkInfo:
        """One network, and who has which address of it."""
        return networks.info(networks.get(name))

    @routes.patch("/networks/{name}")
    async def change(name: NetworkName, body: SettingsBody, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of it, all or none, while no machine on it runs."""
        return await networks.set(name, body.pairs(), dry_run=dry_run)

    @routes.get("/networks/{name}/ports")
    async def list_ports(name: NetworkName) -> list[PortInfo]:
        """The ports of its switch, and what went through them; none while it is down."""
        return await ports.ports(daemon.supervisor, name)

    @routes.delete("/networks/{name}", status_code=204)
    async def delete(name: NetworkName) -> None:
        """Remove a network that no machine has a NIC on."""
        await networks.delete(name)


def _groups(routes: APIRouter, daemon: Daemon) -> None:
    groups = daemon.supervisor.groups

    @routes.get("/groups")
    async def list_groups() -> list[GroupInfo]:
        """All security groups, by name."""
        return [groups.info(one) for one in groups.all()]

    @routes.post("/groups", status_code=201)
    async def create(group: SecurityGroup) -> GroupInfo:
        """Make a security group."""
        return groups.info(await groups.create(group))

    @routes.get("/groups/{name}")
    async def show(name: GroupName) -> GroupInfo:
        """One security group."""
        return groups.info(groups.get(name))

    @routes.put("/groups/{name}")
    async def put(name: GroupName, group: SecurityGroup) -> GroupInfo:
        """Give it these rules, live on machines that run; make it if it is not there."""
        if group.name != name:
            raise UsageError(f"name: {group.name!r} is not {name!r}, as the path says", field="name")
        await groups.put(group)
        return groups.info(group)

    @routes.delete("/groups/{name}", status_code=204)
    async def delete(name: GroupName) -> None:
        """Remove one that no machine's NIC is in."""
        await groups.delete(name)


def _nics(routes: APIRouter, daemon: Daemon) -> None:
    supervisor = daemon.supervisor

    @routes.get("/machines/{name}/nics")
    async def list_nics(name: Name) -> list[PortInfo]:
        """The ports of a machine that runs, and what went through them."""
        return await ports.ports_of(supervisor, name)

    @routes.post("/machines/{name}/nics", status_code=201)
    async def connect(name: Name, nic: Nic) -> MachineInfo:
        """Give a machine one more NIC; one that runs gets it at once, if its engine can."""
        return daemon.machine(await ports.connect(supervisor, name, nic))

    @routes.delete("/machines/{name}/nics/{nic}")
    async def disconnect(name: Name, nic: NicName) -> MachineInfo:
        """Take a NIC away from a machine; from one that runs its last one, which the guest lets go of."""
        return daemon.machine(await ports.disconnect(supervisor, name, nic))

    @routes.put("/machines/{name}/nics/{nic}/link")
    async def link(name: Name, nic: NicName, body: LinkBody) -> MachineInfo:
        """Plug its cable in, or pull it; live."""
        return daemon.machine(await ports.set_link(supervisor, name, nic, up=body.up))
