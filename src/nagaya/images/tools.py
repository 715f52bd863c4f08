"""Running other programs for builds: which package has them, their log, their cancellation."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from nagaya import oom
from nagaya.errors import BuildError, NagayaError, ResourceError, UnavailableError
from nagaya.images.workarea import Work

_T = TypeVar("_T")

PACKAGES = {
    "apt-config": "apt",
    "bc": "bc",
    "bison": "bison",
    "busybox": "busybox-static",
    "debugfs": "e2fsprogs",
    "flex": "flex",
    "gcc": "gcc",
    "ionice": "util-linux",
    "make": "make",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "patch": "patch",
    "nice": "coreutils",
    "perl": "perl",
    "qemu-ga": "qemu-guest-agent",
    "qemu-img": "qemu-utils",
    "setpriv": "util-linux",
    "sh": "dash",
    "tar": "tar",
    "unshare": "util-linux",
    "xz": "xz-utils",
}
_SEARCH = os.pathsep.join(
    (os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin")
)
_LOG_TAIL = 20  # lines of a failed program's output that go into the error


def find_tool(name: str) -> Path:
    """Absolute path of a program, or `UnavailableError` that names the Debian package to install."""
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise missing(name, PACKAGES.get(name, name))
    return Path(found)


def missing(what: str, package: str) -> UnavailableError:
    """The error for a program or file whose Debian package is not installed."""
    return UnavailableError(
        f"{what} is not on this host",
        hint=f"install it: apt-get install {package}",
        package=package,
    )


class Runner:
    """Runs programs one after the other for one build. `cancel` may be called from any thread.

    Before the first `run`, `work` must be set: its log receives what the programs print.
    """

    work: Work

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def run(
        self,
        step: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[bytes], None] | None = None,
    ) -> None:
        """Run `argv` to its end; `on_line` sees each line that it prints.

        Raises `BuildError` with the step and the end of its output if it fails.
        """
        tool = find_tool(str(argv[0]))
        # The program ends with the thread that started it: a killed daemon leaves no build behind.
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(tool), *map(str, argv[1:])]
        with self.work.log.open("ab") as log:
            start = log.tell()
            with self._lock:
                self.check()
                self._process = process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={"PATH": _SEARCH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(env or {})},
                    pass_fds=(self.work.lock_fd,),
                    start_new_session=True,
                )
            oom.set_score(process.pid, oom.ORDINARY)
            with process:
                for line in process.stdout or ():
                    log.write(line)
                    if on_line is not None:
                        on_line(line)
            with self._lock:
                self._process = None
        self.check()
        if process.returncode != 0:
            raise self._failure(step, Path(tool).name, process.returncode, start)

    def cancel(self) -> None:
        """Kill the program that runs and refuse to run another. Idempotent."""
        with self._lock:
            self._cancelled = True
            if self._process is not None and self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def check(self) -> None:
        """Raise `BuildError` if the build was cancelled: between steps that run no program."""
        if self._cancelled:
            raise BuildError("the build was cancelled")

    def _failure(self, step: str, tool: str, status: int, start: int) -> NagayaError:
        with self.work.log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        tail = "\n".join(lines[-_LOG_TAIL:])
        if "No space left on device" in tail:
            return ResourceError(
                f"{step}: the disk is full at {self.work.path}", hint="free some space and build again"
            )
        how = f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        return BuildError(
            f"{step}: {tool} failed with {how}", hint=f"its last output:\n{tail}", step=step, log=tail
        )


async def in_thread(build: Callable[[Runner], _T]) -> _T:
    """Run `build` in a thread. Cancelled, it kills what runs and returns when all is cleaned up."""
    runner = Runner()
    task = asyncio.ensure_future(asyncio.to_thread(build, runner))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        runner.cancel()
        with suppress(NagayaError):
            await task
        raise
