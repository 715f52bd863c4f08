"""One QMP command to a machine's monitor, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from nagaya.errors import NagayaError, TimeoutExpiredError, UnavailableError

ANSWER_S = 10.0  # the monitor answers in milliseconds; a host that swaps takes longer


async def ask(name: str, path: Path, command: str, arguments: Mapping[str, object] | None = None) -> Any:
    """What machine `name` answers to `command` on its monitor's socket.

    Raises the `NagayaError` that it answers with, and `UnavailableError` if it does not answer.
    """
    async with _monitor(name, path, command) as client, asyncio.timeout(ANSWER_S):
        return await client.execute(command, arguments)


async def ask_and_see(
    name: str, path: Path, command: str, arguments: Mapping[str, object], seconds: float
) -> None:
    """Have a device removed (`device_del`), and return when the guest has let go of it.

    Raises `TimeoutExpiredError` if it has not within `seconds`, else as `ask`.
    """
    async with _monitor(name, path, command) as client:
        with client.listener("DEVICE_DELETED") as deleted:
            async with asyncio.timeout(ANSWER_S):
                await client.execute(command, arguments)
            try:
                async with asyncio.timeout(seconds):
                    async for event in deleted:
                        if event["data"].get("device") == arguments["id"]:
                            return
            except TimeoutError as error:
                raise TimeoutExpiredError(
                    f"{name} has not let go of {arguments['id']} within {seconds:g} s",
                    hint="unmount it in the guest, then try again",
                    machine=name,
                ) from error


@contextlib.asynccontextmanager
async def _monitor(name: str, path: Path, command: str) -> AsyncIterator[Any]:
    """A connection to the monitor, and its errors as ours."""
    from qemu.qmp import ExecuteError, QMPClient, QMPError  # 12 ms, when a daemon starts

    client = QMPClient(name)
    client.logger.disabled = True  # what goes wrong is raised
    try:
        async with asyncio.timeout(ANSWER_S):
            try:
                await client.connect(str(path))
            except AssertionError as error:  # of qemu.qmp: the session is over before `connect` has returned
                raise EOFError("it closed the connection") from error
        yield client
    except ExecuteError as error:
        details: Any = error.received["error"]
        body = details.get("data")
        if isinstance(body, dict):
            raise NagayaError.from_json(body) from error
        raise NagayaError(f"{name}: its monitor refused {command}: {error}") from error
    except (QMPError, OSError, EOFError, TimeoutError) as error:
        raise UnavailableError(
            f"{name}: its monitor does not answer {command}: {error or 'timeout'}",
            hint="it may be ending, or stuck: nagaya kill",
            machine=name,
        ) from error
    finally:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()
