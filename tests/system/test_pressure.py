"""Waits of real guests are seen: at their own limit, and for one another on one CPU."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

import pytest

from nagaya.models.waits import WaitInfo, WhyAnswer
from nagaya.sdk import Client, Machine

PATIENCE = 60  # s; the kernel's sums lag, and the host is slow
BURN = "while :; do :; done >/dev/null 2>&1 </dev/null &"

pytestmark = [pytest.mark.uml, pytest.mark.root]


def burning(client: Client, name: str, **knobs: object) -> Machine:
    """A machine that computes without end, on the first CPU that we have."""
    spec = {"name": name, "memory": "64MiB", "disks": [{"image": "busybox"}], **knobs}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    assert machine.exec(["sh", "-c", BURN]).exit_code == 0
    return machine


def until(machine: Machine, true: Callable[[WaitInfo], bool]) -> WhyAnswer:
    """What it waited for at the CPUs, once that is `true` of a row."""
    deadline = time.monotonic() + PATIENCE
    while not any(map(true, (answer := machine.why(resource="cpu")).rows)):
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)
    return answer


def test_a_machine_at_its_limit_is_told_so_and_what_to_do(client: Client) -> None:
    machine = burning(client, "db", cpu={"limit": 0.2})
    answer = until(machine, lambda row: row.cause == "limit")
    assert any("at its limit (cpu.limit=0.2)." in line for line in answer.words)
    assert "nagaya set db cpu.limit=0.4" in [advice.command for advice in answer.advice]
    usage = client.usage().machines[0].pressure
    assert usage.throttled_us and usage.cpu_wait_us


def test_machines_on_one_cpu_wait_for_one_another(client: Client) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    db, web = (burning(client, name, cpu={"pin": cpu}) for name in ("db", "web"))
    for one, other in ((db, "web"), (web, "db")):
        answer = until(one, functools.partial(_because_of, other))
        assert any(f"because {other} ran." in line for line in answer.words)
    assert client.usage().host.cpu is not None


def _because_of(whom: str, row: WaitInfo) -> bool:
    return row.whom == whom
