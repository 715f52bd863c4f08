"""Tells the host's out-of-memory killer which machines use more than they were promised."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from nagaya import oom
from nagaya.errors import NagayaError
from nagaya.resources import admission
from nagaya.resources.policy import HostPolicy
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from nagaya.daemon.supervisor import Supervisor

INTERVAL = 2.0  # s between two looks

log = logging.getLogger("nagaya.daemon")


async def mind_oom(supervisor: Supervisor) -> None:
    """Look again and again."""
    while True:
        await asyncio.sleep(INTERVAL)
        try:
            await asyncio.to_thread(rank, supervisor)
        except (NagayaError, OSError) as error:
            log.warning("machines could not be ranked for the out-of-memory killer: %s", error)


def rank(supervisor: Supervisor) -> None:
    """One look at all machines that run."""
    policy = supervisor.capacity.policy
    for one in supervisor.all():
        if one.process is not None:
            used = supervisor.memory.held.of(one).machine
            supervisor.parts.rank(one.row.id, score(policy, one.spec, used))


def score(policy: HostPolicy, spec: MachineSpec, used: int | None) -> int:
    """Of a machine that uses so many bytes of host memory; None: nobody knows.

    Where nothing is overcommitted, a machine is promised all of its size, and its control group holds it to
    that.
    """
    if policy.memory.overcommit == "none" or used is None:
        return oom.WITHIN
    return oom.BEYOND if used > spec.memory.reservation + admission.OVERHEAD else oom.WITHIN
