"""The daemon as one object: what the API's routes work on."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nagaya
from nagaya.daemon.demand import Demand
from nagaya.daemon.disks import Disks
from nagaya.daemon.events import Events
from nagaya.daemon.login import admit
from nagaya.daemon.operations import Operations
from nagaya.daemon.parts import Agent, BaseImage, Parts
from nagaya.daemon.supervised import ALIVE, UP, Supervised
from nagaya.daemon.supervisor import Supervisor
from nagaya.errors import NagayaError, UsageError
from nagaya.models.history import ExecAnswer
from nagaya.models.host import HostInfo
from nagaya.models.image import ImageInfo
from nagaya.models.login import LoginAnswer
from nagaya.models.machine import MachineInfo
from nagaya.paths import Paths

AGENT_PATIENCE = 3.0  # s that an agent has to answer; a busy guest takes its time
AGENT_POLL = 1.0  # s that one attempt takes at most while the guest boots
AGENT_PAUSE = 0.05  # s between attempts


@dataclass(slots=True, eq=False)
class Daemon:
    """Everything that lives as long as the daemon."""

    paths: Paths
    parts: Parts
    supervisor: Supervisor
    operations: Operations
    events: Events
    started_at: float
    disks: Disks
    demand: Demand
    adopted_in: float = 0.0

    def host(self) -> HostInfo:
        """The host, and the processes of this Nagaya."""
        machines = self.supervisor.all()
        return HostInfo(
            version=nagaya.__version__,
            hostname=socket.gethostname(),
            daemon_pid=os.getpid(),
            daemon_started_at=self.started_at,
            adopted_in=self.adopted_in,
            plane_pid=self.parts.plane.pid(),
            zygote_pid=self.parts.zygote_pid(),
            machines=len(machines),
            machines_running=sum(one.row.state in ALIVE for one in machines),
            run=str(self.paths.run),
            state=str(self.paths.state),
            cache=str(self.paths.cache),
        )

    def machine(self, one: Supervised) -> MachineInfo:
        """What the API says of a machine."""
        return one.info(self.paths)

    def image(self, image: BaseImage) -> ImageInfo:
        """What the API says of an image."""
        users = self.supervisor.images_in_use().get(image.digest, [])
        return ImageInfo(
            image.name, image.digest, image.size, image.created_at, image.os, image.recipe, list(users)
        )

    async def exec(
        self,
        name: str,
        argv: Sequence[str],
        *,
        stdin: str,
        env: Mapping[str, str],
        seconds: float,
        wait: float,
    ) -> ExecAnswer:
        """Run a command in a guest; `stdin` and the outputs are base64."""
        one = self.supervisor.get(name)
        try:
            given = base64.b64decode(stdin, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UsageError("stdin: not base64", field="stdin") from error
        agent = await self.agent(one, wait)
        try:
            status, out, err, cut = await agent.exec(argv, env=env, stdin=given, seconds=seconds)
        finally:
            await agent.close()
        return ExecAnswer(status, base64.b64encode(out).decode(), base64.b64encode(err).decode(), cut)

    async def admit(self, name: str, *, user: str, key: str, wait: float) -> LoginAnswer:
        """Let an ssh key into a guest."""
        one = self.supervisor.get(name)
        agent = await self.agent(one, wait)
        try:
            return await admit(agent, one.name, user, key)
        finally:
            await agent.close()

    async def agent(self, one: Supervised, wait: float) -> Agent:
        """A client of the guest agent, which answers; it has `wait` seconds to come up. `close` it."""
        deadline = time.monotonic() + wait
        agent = self.parts.agent(one.name, self.paths.machine(one.row.id))
        try:
            while True:
                one.require(UP, "talked to through its guest agent", hint=f"nagaya start {one.name}")
                left = deadline - time.monotonic()
                try:
                    await agent.ping(AGENT_PATIENCE if left <= 0 else min(left, AGENT_POLL))
                    return agent
                except NagayaError:
                    if left <= 0:
                        raise
                    await asyncio.sleep(AGENT_PAUSE)
        except BaseException:
            await agent.close()
            raise
