"""The daemon's side of the zygote: find or start it, and ask it for things."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nagaya.detached import log_tail, start_detached
from nagaya.engines.engine import ProcessId
from nagaya.engines.plan import MAX_MESSAGE, LaunchPlan, encode
from nagaya.errors import MachineFailedError, NagayaError, PermissionDeniedError, UnavailableError
from nagaya.paths import Paths
from nagaya.resources.cgroups import CgroupBase

START_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
# One that dies resets a connection with a request that it has not read (af_unix.c: unix_release_sock);
# later, the connection just ends.
_NOBODY = (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
_PERMISSION_STEPS = ("enter new namespaces", "prepare the launch", "give up privileges")


class NoZygoteError(UnavailableError):
    """Nobody listens on the zygote's socket, or not any more, so nothing was begun."""


@dataclass(frozen=True, slots=True)
class ZygoteInfo:
    """What the zygote says about itself."""

    pid: int
    base: CgroupBase


@dataclass(frozen=True, slots=True)
class ZygoteClient:
    """Requests to the zygote of `paths`, one connection each. No answer raises `UnavailableError`."""

    paths: Paths

    async def ping(self) -> ZygoteInfo:
        """Its pid and where machines' control groups go."""
        answer = await self._ask({"do": "ping"})
        groups = {str(name): Path(directory) for name, directory in answer["cgroups"].items()}
        return ZygoteInfo(int(answer["pid"]), CgroupBase(groups, dict(answer["missing"])))

    async def list(self) -> dict[str, ProcessId]:
        """The processes it started and that run, by machine id."""
        answer = await self._ask({"do": "list"})
        return {
            str(one["machine"]): ProcessId(int(one["pid"]), int(one["start_time"]))
            for one in answer["processes"]
        }

    async def launch(self, plan: LaunchPlan) -> ProcessId:
        """Fork and jail it. Raises the error of the machine's own set-up, or `MachineFailedError` or
        `PermissionDeniedError` that names the step."""
        answer = await self._ask({"do": "launch", "plan": plan.to_json()})
        if "error" not in answer:
            return ProcessId(int(answer["pid"]), int(answer["start_time"]))
        if "failure" in answer:
            raise NagayaError.from_json(answer["failure"])
        step, error = str(answer.get("step", "")), str(answer["error"])
        message = f"machine {plan.machine}: its jail failed at the step {step!r}: {error}"
        if "Errno 1]" in error and step in _PERMISSION_STEPS:
            raise PermissionDeniedError(
                message, hint="run the daemon as root, or allow unprivileged user namespaces", step=step
            )
        raise MachineFailedError(message, machine=plan.machine, step=step)

    async def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.setblocking(False)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await loop.sock_connect(connection, str(self.paths.zygote_socket))
                    await loop.sock_sendall(connection, encode(request))
                    answer = await loop.sock_recv(connection, MAX_MESSAGE)
            except (OSError, TimeoutError) as error:
                kind = NoZygoteError if isinstance(error, _NOBODY) else UnavailableError
                raise kind(
                    f"the zygote does not answer on {self.paths.zygote_socket}: {error or 'timeout'}",
                    hint="it is started with the next machine; its log is " + str(_log_path(self.paths)),
                ) from error
        if not answer:
            raise UnavailableError(
                f"the zygote on {self.paths.zygote_socket} closed the connection: it serves uid "
                f"{_owner(self.paths)} only"
            )
        parsed: dict[str, Any] = json.loads(answer)
        return parsed


async def ensure_zygote(paths: Paths) -> ZygoteInfo:
    """The zygote of `paths`, started and ready if none ran. It outlives the caller.

    Raises `UnavailableError` with the end of its log if it does not come up in time.
    """
    client = ZygoteClient(paths)
    try:
        return await client.ping()
    except UnavailableError:
        pass
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await start_detached("nagaya.engines.zygote", paths, _log_path(paths))
            return await _patient_ping(client)
    except (TimeoutError, OSError) as error:
        raise UnavailableError(
            f"the zygote did not start: {error or f'not ready within {START_TIMEOUT_S:g} s'}",
            hint=f"the end of {_log_path(paths)}:\n{log_tail(_log_path(paths))}",
        ) from error


async def _patient_ping(client: ZygoteClient) -> ZygoteInfo:
    """Ours may have lost the lock to another that is about to listen: try until the caller's deadline."""
    while True:
        try:
            return await client.ping()
        except UnavailableError:
            await asyncio.sleep(0.02)


def _log_path(paths: Paths) -> Path:
    return paths.state / "zygote.log"


def _owner(paths: Paths) -> int:
    return paths.zygote_socket.stat().st_uid
