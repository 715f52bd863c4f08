"""Time in a machine of the engine `uml`: timers ring, a program's time is its own, ticks leave it alone."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya.testing.yard import Yard, said, write_initrd

Run = Callable[[Callable[[Yard], Any]], Any]
pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
WATCHED_S = 1.0
TICKS = 100  # a second, CONFIG_HZ


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RAM disk whose init is `uml_time.c`."""
    directory = tmp_path_factory.mktemp("time")
    program = directory / "init"
    source = Path(__file__).with_name("uml_time.c")
    subprocess.run(["cc", "-O1", "-static", "-o", program, source], check=True)
    write_initrd(directory / "initrd", init=program.read_bytes())
    return directory / "initrd"


def test_timers_ring_and_programs_are_charged_for_what_they_do(yard: Run) -> None:
    async def test(yard: Yard) -> None:
        machine = yard.machine("nothing")
        process = await yard.engine.start(machine)
        log = await said(machine, "SPIN", 60)
        assert re.findall(r"(\w+) RINGS", log) == ["REAL", "VIRTUAL", "PROF"]
        hogs = [(int(user), int(system)) for user, system in re.findall(r"HOG (\d+) (\d+)", log)]
        assert len(hogs) == 2
        for user, system in hogs:
            assert user > system
        before = _stops(process.pid)
        await asyncio.sleep(WATCHED_S)
        assert _stops(process.pid) - before < WATCHED_S * TICKS / 4

    yard(test)


def _stops(kernel: int) -> int:
    """How often the guest's program was stopped for its kernel: a process that ptrace stops goes to sleep."""
    children = Path(f"/proc/{kernel}/task/{kernel}/children").read_text().split()
    assert children
    pattern = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
    found = [pattern.search(Path(f"/proc/{child}/status").read_text()) for child in children]
    return sum(int(one[1]) for one in found if one)
