"""One QMP command to a machine's monitor, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nagaya.errors import NagayaError, UnavailableError

ANSWER_S = 10.0  # the monitor answers in milliseconds; a host that swaps takes longer


async def ask(name: str, path: Path, command: str, arguments: Mapping[str, object] | None = None) -> Any:
    """What machine `name` answers to `command` on its monitor's socket.

    Raises the `NagayaError` that it answers with, and `UnavailableError` if it does not answer.
    """
    from qemu.qmp import ExecuteError, QMPClient, QMPError  # 12 ms, when a daemon starts

    client = QMPClient(name)
    client.logger.disabled = True  # what goes wrong is raised
    try:
        async with asyncio.timeout(ANSWER_S):
            await client.connect(str(path))
            return await client.execute(command, arguments)
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
