"""Finding the daemon, or starting one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nagaya.errors import ConflictError, UnavailableError
from nagaya.paths import Paths
from nagaya.sdk.client import Client

_START_TIME = 60.0  # s that a daemon has to be ready; a host six times overloaded needed over 30


def ensure_daemon(paths: Paths | None = None, *, program: Sequence[str] = ("-m", "nagaya.daemon")) -> int:
    """The pid of the daemon that serves `paths`; one is started, detached, if none answers.

    `program` are the arguments of Python that start it (tests start one with fakes).
    """
    paths = paths or Paths.default()
    with Client(paths) as client:
        try:
            return client.host().daemon_pid
        except UnavailableError:
            pass
        try:
            _start_daemon(paths, program)
        except ConflictError:  # somebody else's start was quicker; it serves soon
            from nagaya.sdk.patience import patiently

            return patiently(lambda: client.host().daemon_pid, _START_TIME)
        return client.host().daemon_pid


def _start_daemon(paths: Paths, program: Sequence[str]) -> None:
    """Start one and wait until it says that it is ready, or ends."""
    import subprocess

    log = paths.state / "daemon.log"
    before = log.stat().st_size if log.exists() else 0
    ready, told = os.pipe()
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                *program,
                "--ready-fd",
                str(told),
                "--log-file",
                str(log),
            ],
            pass_fds=[told],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env=os.environ | paths.environment(),
            start_new_session=True,
        )
    finally:
        os.close(told)
    with process, os.fdopen(ready, "rb") as pipe:
        said = _read_until(pipe.fileno(), _START_TIME)
        if said.startswith(b"ready"):
            process.returncode = 0  # it is not ours to wait for: it outlives us
            return
        if said is _NOTHING:
            process.kill()
        complaint = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    complaint = complaint or _last_line(log, before)
    if said is _NOTHING:
        late = f"it was not ready within {_START_TIME:g} s"
        complaint = f"{late}: {complaint}" if complaint else late
    if process.returncode == ConflictError.exit_code:
        raise ConflictError(complaint.removeprefix("nagayad: "))
    raise UnavailableError(
        f"the daemon did not start: {complaint or 'it ended without a word'}",
        hint=f"{log} has all of it; `nagaya daemon` runs it in this terminal",
    )


def _last_line(log: Path, start: int) -> str:
    """What was written last to `log` behind its first `start` bytes; a daemon with a log complains there."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 4096))
            return file.read().decode(errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return ""


_NOTHING = b"\0"


def _read_until(pipe: int, seconds: float) -> bytes:
    """What the pipe says first, b"" at its end, `_NOTHING` after `seconds`."""
    import select

    readable, _, _ = select.select([pipe], [], [], seconds)
    return os.read(pipe, 64) if readable else _NOTHING
