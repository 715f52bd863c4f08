"""The kernel's own out-of-memory killer, in a memory control group of the test's: whom it takes first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nagaya import oom
from nagaya.resources.cgroups import Cgroup, Limits, find_base, remove_base

pytestmark = pytest.mark.root

MIB = 2**20
LIMIT = 128  # MiB
# Takes a line with a number of MiB, touches as much, answers.
_EATER = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x") * (int(line) << 20))
    print("eaten", flush=True)
"""


class Eater:
    """A process in a control group that takes memory when it is told to."""

    def __init__(self, group: Cgroup, score: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _EATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for directory in dict.fromkeys(group.groups.values()):
            (directory / "cgroup.procs").write_text(str(self._process.pid))
        oom.rank(lambda: [self._process.pid], score)

    def eat(self, mib: int) -> str:
        """ "eaten", or "" if that was its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{mib}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> int:
        self._process.kill()
        self._process.communicate()
        return self._process.returncode

    def wait(self) -> int:
        return self._process.wait(60)


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A control group that holds no more than `LIMIT`."""
    base = find_base(f"oom-test-{os.getpid()}")
    if "memory" not in base.groups:
        remove_base(base)
        pytest.skip("no memory controller: nothing can be out of memory but the host")
    one = Cgroup.below(base, "all")
    one.create(Limits(memory=LIMIT * MIB))
    # Where the host has swap, the kernel would rather use that.
    for name in ("memory.swappiness", "memory.swap.max"):
        if (file := one.groups["memory"] / name).exists():
            file.write_text("0")
    yield one
    one.kill()
    one.remove(10)
    remove_base(base)


def _room(group: Cgroup) -> int:
    """MiB that the group has left."""
    return LIMIT - (group.memory_bytes() or 0) // MIB


def test_a_large_machine_within_its_promise_outlives_a_smaller_one_beyond_it(group: Cgroup) -> None:
    plane, within, beyond = (Eater(group, score) for score in (oom.HOST, oom.WITHIN, oom.BEYOND))
    try:
        assert plane.eat(4) == "eaten"
        assert within.eat(48) == "eaten"
        assert beyond.eat(36) == "eaten"
        assert within.eat(_room(group) + 16) == "eaten"
        assert beyond.wait() == -signal.SIGKILL
        assert within.eat(_room(group) + 16) == ""
        assert within.wait() == -signal.SIGKILL
        assert plane.status is None
        assert group.oom_kills() == 2
    finally:
        for one in (plane, within, beyond):
            one.end()
