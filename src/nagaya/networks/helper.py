"""The programs that serve a network: started, found again after a crash of the daemon, started again.

Such a program forks itself into the background once it serves, and the process that was started ends then,
with status 0. One argument of it is its `mark`, a path that no other process has on its command line: by
the mark and its user it is found, without a record that could be stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from nagaya.errors import UnavailableError

_START_S = 15.0
_POLITE_S = 2.0
_ATTEMPTS = 3
_BACKOFF_S = (0.1, 30.0)  # of restarts: the first, and the longest
_STEADY_S = 60.0  # who lived so long begins again with the shortest
_PART = 32 * 1024  # bytes of a command line that are read at once; most have less
_MESSAGE_LIMIT = 1000  # bytes of a program's complaint in an error

log = logging.getLogger("nagaya.networks")


@dataclass(frozen=True, slots=True)
class Program:
    """What runs: `argv` holds `mark`, and the process belongs to `uid`."""

    title: str  # "dnsmasq of network default"
    argv: tuple[str, ...]
    mark: str
    uid: int
    environment: Mapping[str, str] | None = None  # None: the daemon's


class Helper:
    """One supervised program. It outlives this object; `stop` ends it. `restarted` is called after one."""

    def __init__(self, program: Program, restarted: Callable[[], Awaitable[None]] | None = None) -> None:
        self.program = program
        self._restarted = restarted
        self.restarts = 0
        self._watch: asyncio.Task[None] | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Its process, None while there is none."""
        return self._pid

    async def ensure(self, *, fresh: bool = False) -> None:
        """One process of it runs and is watched: an old one, if there is exactly one and not `fresh`.

        Raises `UnavailableError` with what the program said if it does not start.
        """
        if self._pid is not None and not fresh and self._watch is not None and not self._watch.done():
            return
        await self._forget()
        pids = find(self.program.mark, self.program.uid)
        if fresh or len(pids) != 1 or not _runs(pids[0], self.program):
            pids = [await self._start_alone()]
        self._pid = pids[0]
        self._watch = asyncio.create_task(self._supervise(), name=self.program.title)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        for pid in find(self.program.mark, self.program.uid):
            _signal(pid, self.program.mark, self.program.uid, number)

    async def stop(self) -> None:
        """It runs no more, nor does any other with its mark."""
        await self._forget()
        await end(self.program.mark, self.program.uid)

    async def close(self) -> None:
        """Stop watching; the program runs on."""
        await self._forget()

    async def _forget(self) -> None:
        self._pid = None
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None

    async def _start_alone(self) -> int:
        """Start it where no other is: what a daemon that was killed had begun to start may come up late."""
        for _ in range(_ATTEMPTS):
            await end(self.program.mark, self.program.uid)
            await self._start()
            pids = find(self.program.mark, self.program.uid)
            if len(pids) == 1:
                return pids[0]
        raise UnavailableError(f"{self.program.title} started and ended, or others like it run: {pids}")

    async def _start(self) -> None:
        program = self.program
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            env=None if program.environment is None else dict(program.environment),
            restore_signals=False,  # a full log is an error of write, not the end by SIGXFSZ
        )
        message = b""
        try:
            async with asyncio.timeout(_START_S):
                if process.stderr is not None:  # its end may stay open in the background
                    status, message = await _status(process, process.stderr)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise UnavailableError(f"{program.title} did not start within {_START_S:g} s") from error
        if status != 0:
            text = message.decode(errors="replace").strip()
            raise UnavailableError(
                f"{program.title} did not start: {text or f'status {status}'}",
                hint=f"by hand: {' '.join(program.argv)}",
            )

    async def _supervise(self) -> None:
        pause = _BACKOFF_S[0]
        while True:
            since = time.monotonic()
            if self._pid is not None:
                await _gone(self._pid, self.program.mark, self.program.uid)
                log.warning("%s (process %d) has ended", self.program.title, self._pid)
            self._pid = None
            pause = _BACKOFF_S[0] if time.monotonic() - since > _STEADY_S else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_S[1])
            try:
                self._pid = await self._start_alone()
            except UnavailableError as error:
                log.error("%s", error.message)
                continue
            self.restarts += 1
            if self._restarted is not None:
                await self._restarted()


def find(mark: str, uid: int) -> list[int]:
    """The processes of `uid`, or of root on its way there, that have `mark` as an argument."""
    wanted = os.fsencode(mark)
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if entry.stat().st_uid not in (0, uid):
                continue
            line = _command_line(entry.name)
        except OSError:  # it has ended
            continue
        if wanted in line and wanted in line.split(b"\0") and entry.name != str(os.getpid()):
            found.append(int(entry.name))
    return sorted(found)


async def end(mark: str, uid: int) -> None:
    """End the processes of `uid` that have `mark` as an argument, politely first."""
    while pids := find(mark, uid):  # again, for one may have forked meanwhile
        for pid in pids:
            for number in (signal.SIGTERM, signal.SIGKILL):
                _signal(pid, mark, uid, number)
                if await _gone(pid, mark, uid, _POLITE_S):
                    break


def arguments(pid: int) -> tuple[str, ...]:
    """The command line of a process, empty if it has ended."""
    try:
        words = _command_line(str(pid)).rstrip(b"\0").split(b"\0")
    except OSError:
        return ()
    return tuple(map(os.fsdecode, words))


def _command_line(pid: str) -> bytes:
    """Read of all processes a dozen times for a network: a file object would take nine times as long."""
    fd = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = part = os.read(fd, _PART)
        while len(part) == _PART:
            part = os.read(fd, _PART)
            line += part
        return line
    finally:
        os.close(fd)


def _runs(pid: int, program: Program) -> bool:
    """Whether the process has the program's arguments; what only prepares its start is not among them."""
    words = arguments(pid)
    return bool(words) and words == program.argv[-len(words) :]


async def _status(process: asyncio.subprocess.Process, stderr: asyncio.StreamReader) -> tuple[int, bytes]:
    status = await process.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2 if status == 0 else 1.0):
            return status, await stderr.read(_MESSAGE_LIMIT)
    return status, b""


def _open(pid: int, mark: str, uid: int) -> int | None:
    """A pidfd of `pid` if that is still the program."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if pid in find(mark, uid):
        return fd
    os.close(fd)
    return None


def _signal(pid: int, mark: str, uid: int, number: signal.Signals) -> None:
    fd = _open(pid, mark, uid)
    if fd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)
        os.close(fd)


async def _gone(pid: int, mark: str, uid: int, seconds: float | None = None) -> bool:
    """Wait until the process has ended; False at the timeout."""
    fd = _open(pid, mark, uid)
    if fd is None:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return bool(select.select([fd], [], [], 0)[0])
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return True
