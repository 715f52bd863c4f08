"""Other Nagayas on this host, asked which machine of theirs has an image."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from nagaya.connection import Connection
from nagaya.errors import ConflictError, NagayaError
from nagaya.models.lease import LeaseInfo
from nagaya.paths import Paths

_PATIENCE = 1.0  # s; the refusal is right without their answer, too


async def with_names(error: ConflictError) -> ConflictError:
    """A refusal of the plane, with the machines that have the image, if planes of other Nagayas locked it."""
    path, users = error.facts.get("path"), error.facts.get("users")
    if not isinstance(path, str) or not isinstance(users, list):
        return error
    runs = [Path(str(user["run"])) for user in users if user.get("run")]
    answers = await asyncio.gather(*(asyncio.to_thread(_ask, run, path) for run in runs))
    holders = "; ".join(words for words in answers if words)
    if not holders:
        return error
    return ConflictError(f"{error.message}: {holders}", hint=error.hint, **error.facts)


def _ask(run: Path, path: str) -> str:
    with Connection(Paths(run, run, run)) as other:
        try:
            rows: list[dict[str, Any]] = other.request(
                "GET", "/v1/leases", query={"resource": path}, within=_PATIENCE
            )
            leases = [LeaseInfo.from_json(row) for row in rows]
        except (NagayaError, TypeError, AttributeError):  # its daemon is down, or another version's
            return ""
    held = [lease for lease in leases if lease.state == "held"]
    return ", ".join(f"{lease.machine} has it since {moment(lease.since)}" for lease in held)


def moment(at: float) -> str:
    """Local time as a message says it: 2026-05-04 13:14:15."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
