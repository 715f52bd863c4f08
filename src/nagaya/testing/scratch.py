"""Short-lived directories of tests, and the end of what a killed test run left behind.

A run of the tests is named `PID-START_TIME`, which no other process ever has. Its processes inherit the name
in their environment, its directories hold it in a file. `sweep` ends and removes what belongs to runs that
are no more. Machines in their jails inherit nothing: the control groups that the directories name have them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nagaya.engines.procs import start_time_of
from nagaya.errors import ResourceError
from nagaya.resources.cgroups import Cgroup, CgroupBase, remove_base

RUN_VARIABLE = "NAGAYA_TEST_RUN"
OWNER_FILE = ".owner"
_PREFIX = "ng"
_TOP = Path("/tmp")  # noqa: S108 - a unix socket's address holds 107 bytes, so paths have to be short
_PATIENCE_S = 2.0


def begin_run() -> None:
    """Make this process a run: what it starts and makes from now on belongs to it."""
    os.environ[RUN_VARIABLE] = f"{os.getpid()}-{start_time_of(os.getpid())}"


def make_directory() -> Path:
    """A new directory with a short path, to be removed by the caller or, if that is killed, by `sweep`."""
    if RUN_VARIABLE not in os.environ:
        begin_run()
    top = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_TOP))
    (top / OWNER_FILE).write_text(os.environ[RUN_VARIABLE])
    return top


def sweep() -> list[str]:
    """End the processes and remove the directories of runs that are no more. Returns what was done, in words.

    Raises `ResourceError` if something withstands.
    """
    done = []
    if pids := _end_processes():
        done.append(f"ended {len(pids)} processes of a killed run: {', '.join(map(str, pids))}")
    for owner in _TOP.glob(f"{_PREFIX}*/{OWNER_FILE}"):
        with contextlib.suppress(FileNotFoundError):  # another run sweeps too
            if owner.stat().st_uid == os.geteuid() and not _is_alive(owner.read_text()):
                _remove(owner.parent)
                done.append(f"removed {owner.parent} of a killed run")
    return done


def _is_alive(run: str) -> bool:
    pid, _, start_time = run.partition("-")
    with contextlib.suppress(OSError):
        return start_time_of(int(pid)) == int(start_time)
    return False


def _end_processes() -> list[int]:
    """Politely first: a zygote takes its control groups with it."""
    ended: set[int] = set()
    for number, seconds in ((signal.SIGTERM, _PATIENCE_S), (signal.SIGKILL, 2 * _PATIENCE_S)):
        deadline = time.monotonic() + seconds
        signalled: set[int] = set()
        while (left := set(_orphans())) and time.monotonic() < deadline:
            for pid in left - signalled:
                _signal(pid, number)
            signalled |= left
            time.sleep(0.02)
        ended |= signalled
    if left:
        raise ResourceError(f"processes of a killed test run do not end: {sorted(left)}")
    return sorted(ended)


def _orphans() -> Iterator[int]:
    """The processes of runs that are no more."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _is_orphan(int(entry.name)):
            yield int(entry.name)


def _is_orphan(pid: int) -> bool:
    wanted = f"{RUN_VARIABLE}=".encode()
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended, or another user's
        return False
    run = next((word for word in environment if word.startswith(wanted)), None)
    return run is not None and not _is_alive(run.removeprefix(wanted).decode())


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _is_orphan(pid):  # still the same process
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _remove(top: Path) -> None:
    for record in top.glob("r/machines/*/cgroups.json"):
        group = Cgroup.load(record)
        if group is not None:
            group.kill()
            group.remove(timeout=10)
            remove_base(CgroupBase({name: path.parent for name, path in group.groups.items()}))
    for point in _mounts_below(top):
        subprocess.run(["umount", "--lazy", point], check=True)
    shutil.rmtree(top)


def _mounts_below(top: Path) -> list[Path]:
    """Innermost first. Field 5 of proc(5) has blanks and backslashes in octal, which our paths lack."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4]) for line in lines]
    return [point for point in reversed(points) if point.is_relative_to(top)]
