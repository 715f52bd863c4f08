"""Starts the helper processes that outlive whoever needed them first: the zygote and the plane's holder.

Such a program is `python -m MODULE --detach --ready-fd N`: it forks, its parent half ends at once, and a
line, or the end, comes through N once it serves or has given up, because another one holds its lock.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from nagaya.paths import Paths

_LOG_LIMIT = 4 * 2**20  # bytes of a log before the next start moves it to NAME.1
_TAIL = 2000  # bytes


async def start_detached(module: str, paths: Paths, log: Path) -> None:
    """Start `module` for `paths`, its output at the end of `log`; returns when it serves or has given up."""
    for directory in (paths.run, paths.state):
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    ready, ready_writer = os.pipe()
    os.set_blocking(ready, False)
    try:
        try:
            output = _open_log(log)
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module, "--detach", "--ready-fd", str(ready_writer)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[ready_writer],
                    env=_environment(paths),
                )
            finally:
                os.close(output)
        finally:
            os.close(ready_writer)
        await process.wait()  # the parent half; the helper itself is nobody's child
        await _readable(ready)
    finally:
        os.close(ready)


def log_tail(log: Path) -> str:
    """How `log` ends, "" if there is none: the hint of an error about a start."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _open_log(log: Path) -> int:
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_name(log.name + ".1"))
    return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _environment(paths: Paths) -> dict[str, str]:
    package = str(Path(__file__).parents[1])  # a checkout that is on sys.path but not installed
    known = os.environ.get("PYTHONPATH", "")
    return os.environ | paths.environment() | {"PYTHONPATH": f"{package}:{known}" if known else package}


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)
