"""`/v1/machines`: make, command and remove machines."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon.api.settings import SettingsBody
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.login import KEY_PATTERN, USER_PATTERN
from nagaya.daemon.state import JOURNAL_KEPT
from nagaya.daemon.supervised import DOWN, UP
from nagaya.daemon.supervisor import STOP_TIME
from nagaya.models.history import ExecAnswer, JournalEntry
from nagaya.models.login import LoginAnswer
from nagaya.models.machine import MachineInfo
from nagaya.models.shares import ChangesAnswer
from nagaya.spec import MachineSpec

Name = Annotated[str, Path(description="a machine's name or id", max_length=64)]
Seconds = Annotated[float, Query(ge=0, le=86400, description="seconds")]


class ExecBody(BaseModel):
    """A command for a guest."""

    model_config = ConfigDict(extra="forbid")

    argv: Annotated[list[str], Field(min_length=1, max_length=4096)]
    stdin: Annotated[str, Field(description="base64")] = ""
    env: dict[str, str] = {}
    timeout: Annotated[float, Field(gt=0, le=86400, description="seconds")] = 60.0
    wait: Annotated[float, Field(ge=0, le=3600, description="seconds that the agent has to come up")] = 0.0


class LoginBody(BaseModel):
    """A key that a guest is to let in."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(pattern=KEY_PATTERN, description="a public key as in `id_ed25519.pub`")]
    user: Annotated[str, Field(pattern=USER_PATTERN)] = "root"
    wait: Annotated[float, Field(ge=0, le=3600, description="seconds that the agent has to come up")] = 0.0


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/machines", tags=["machines"])
    supervisor = daemon.supervisor

    @routes.get("")
    async def list_machines() -> list[MachineInfo]:
        """All machines, by name."""
        return [daemon.machine(one) for one in supervisor.all()]

    @routes.post("", status_code=201)
    async def create(spec: MachineSpec, start: bool = False) -> MachineInfo:
        """Make a machine, and start it if asked; one that cannot be started is not kept."""
        one = await supervisor.create(spec)
        if start:
            try:
                await supervisor.start(one.row.id)
            except BaseException:
                await supervisor.delete(one.row.id, force=True)
                raise
        return daemon.machine(one)

    @routes.get("/{name}")
    async def show(name: Name) -> MachineInfo:
        """One machine."""
        return daemon.machine(supervisor.get(name))

    @routes.patch("/{name}")
    async def change(name: Name, body: SettingsBody, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of its specification, all or none: knobs live, the rest of a machine that is down."""
        return await supervisor.shares.set(name, body.pairs(), dry_run=dry_run)

    @routes.delete("/{name}", status_code=204)
    async def delete(name: Name, force: bool = False) -> None:
        """Remove a machine and its disks; one that runs only with `force`."""
        await supervisor.delete(name, force=force)

    @routes.post("/{name}/start")
    async def start(name: Name) -> MachineInfo:
        """Start it; answers when its process runs."""
        return daemon.machine(await supervisor.start(name))

    @routes.post("/{name}/stop")
    async def stop(name: Name, timeout: Seconds = STOP_TIME) -> MachineInfo:  # noqa: ASYNC109
        """Ask the guest to shut down, end it after `timeout`; answers when it is gone."""
        return daemon.machine(await supervisor.stop(name, timeout))

    @routes.post("/{name}/kill")
    async def kill(name: Name) -> MachineInfo:
        """End it now."""
        return daemon.machine(await supervisor.kill(name))

    @routes.post("/{name}/pause")
    async def pause(name: Name) -> MachineInfo:
        """Stop its CPUs."""
        return daemon.machine(await supervisor.pause(name))

    @routes.post("/{name}/resume")
    async def resume(name: Name) -> MachineInfo:
        """Let its CPUs run again."""
        return daemon.machine(await supervisor.resume(name))

    @routes.post("/{name}/restart")
    async def restart(name: Name, timeout: Seconds = STOP_TIME, hard: bool = False) -> MachineInfo:  # noqa: ASYNC109
        """Stop it and start it again with fresh devices; `hard` is a reset."""
        return daemon.machine(await supervisor.restart(name, timeout, hard=hard))

    @routes.post("/{name}/wait")
    async def wait(
        name: Name,
        until: Literal["running", "stopped", "agent"] = "running",
        timeout: Annotated[float, Query(ge=0, le=60, description="seconds")] = 20.0,  # noqa: ASYNC109
    ) -> MachineInfo:
        """Answer when it runs, is down, or its guest agent answers; the error `timeout` otherwise."""
        if until == "agent":
            agent = await daemon.agent(supervisor.get(name), timeout)
            await agent.close()
            return daemon.machine(supervisor.get(name))
        return daemon.machine(await supervisor.wait(name, DOWN if until == "stopped" else UP, timeout))

    @routes.post("/{name}/exec")
    async def run(name: Name, body: ExecBody) -> ExecAnswer:
        """Run a command in the guest, as its root, through its agent."""
        return await daemon.exec(
            name, body.argv, stdin=body.stdin, env=body.env, seconds=body.timeout, wait=body.wait
        )

    @routes.post("/{name}/login")
    async def login(name: Name, body: LoginBody) -> LoginAnswer:
        """Let an ssh key in, through the guest agent; by which host keys the machine is known."""
        return await daemon.admit(name, user=body.user, key=body.key, wait=body.wait)

    @routes.get("/{name}/journal")
    async def journal(
        name: Name, limit: Annotated[int, Query(ge=1, le=JOURNAL_KEPT)] = JOURNAL_KEPT
    ) -> list[JournalEntry]:
        """Its history, oldest first."""
        return await supervisor.journal(name, limit)

    return routes
