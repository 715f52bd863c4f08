"""A client of the standard qemu-guest-agent, over the agent's socket of a machine (docs/plane.md, "Agent").

The agent runs in the guest, so what it says is checked: sizes are bounded, types are verified, and nothing is
waited for without a deadline. The wire protocol is QEMU's interop/qemu-ga-ref.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar

from nagaya.agent.stream import AgentStream, Refusal
from nagaya.errors import (
    NagayaError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    TimeoutExpiredError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)

COMMAND_SECONDS = 10.0  # for an ordinary command; the slowest, fsfreeze of a busy guest, takes a few
STDIN_LIMIT = 8 * 2**20  # bytes; it travels in one message that the agent holds in memory three times
_ANSWER_LIMIT = 64 * 1024  # bytes; guest-info with all its commands is 8 KiB
_OUTPUT_LIMIT = 48 * 2**20  # bytes; the agent captures 16 MiB of each of two outputs, base64 adds a third
_FILE_CHUNK = 2**20  # bytes
_POLL_SECONDS = (0.005, 0.5)
_POLL_SHARE = 0.1  # a command that ran 1 s is polled every 100 ms: at most a tenth is added to its time
_RELEASE_SECONDS = 0.05  # pauses at least this long leave the agent to other clients

T = TypeVar("T")


class ExecResult(NamedTuple):
    """What a command in the guest left. A signal is exit code 128 plus its number, as in a shell."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool  # an output was over the 16 MiB that the agent keeps


class AgentInfo(NamedTuple):
    """The agent's version and the commands that it allows."""

    version: str
    commands: frozenset[str]


class GuestAgent:
    """The agent of `machine` (its name, for messages) behind the unix socket `path`.

    Connects when needed; methods may be called concurrently and by several clients, commands then take turns.
    Every method raises `UnavailableError` (no such machine running), `TimeoutExpiredError` (no agent in the
    guest, or it hangs) or `ProtocolError` (it talks nonsense), each naming the machine.
    """

    def __init__(self, machine: str, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._machine = machine
        self._stream: AgentStream | None = None
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, machine: str, path: str | os.PathLike[str], timeout: float = 1.0) -> Self:  # noqa: ASYNC109
        """A client whose agent has just answered, within `timeout` seconds."""
        agent = cls(machine, path)
        await agent.ping(timeout)
        return agent

    async def ping(self, timeout: float = 1.0) -> None:  # noqa: ASYNC109
        """Return if the agent answers within `timeout` seconds."""
        await self._call("guest-ping", timeout=timeout)

    async def info(self) -> AgentInfo:
        """Version and commands."""
        answer = self._object(await self._call("guest-info"), "guest-info")
        commands = self._field(answer, "supported_commands", list)
        names = {
            str(command["name"])
            for command in commands
            if isinstance(command, dict) and command.get("enabled")
        }
        return AgentInfo(self._field(answer, "version", str), frozenset(names))

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float = 60.0,  # noqa: ASYNC109
    ) -> ExecResult:
        """Run a command in the guest and wait for its end. `env` is added to the agent's own environment.

        At the deadline, or when the caller is cancelled, the command is killed. Raises `NotFoundError` if the
        guest has no such program, and `UsageError` for input over `STDIN_LIMIT`.
        """
        request = _exec_request(argv, env or {}, stdin)
        pid = None
        try:
            async with asyncio.timeout(timeout):
                started = await self._call("guest-exec", request)
                pid = self._field(self._object(started, "guest-exec"), "pid", int)
                return await self._exec_result(pid)
        except NotFoundError as error:
            raise NotFoundError(f"there is no program {argv[0]} in {self._machine}") from error
        except TimeoutError as error:
            then = "and was killed" if await self._kill(pid) else "and may still run"
            message = f"{argv[0]} in machine {self._machine} did not end within {timeout:g} s {then}"
            raise TimeoutExpiredError(message, hint="give it more time with --timeout") from error
        except asyncio.CancelledError:
            await self._kill(pid)
            raise

    async def shutdown(self, mode: Literal["powerdown", "halt", "reboot"] = "powerdown") -> None:
        """Ask the guest to end or restart. Returns once the agent has taken it; the guest takes its time."""
        await self._call("guest-shutdown", {"mode": mode}, silent_seconds=0.3)

    async def fs_freeze(self) -> int:
        """Flush and freeze all file systems of the guest; how many. `fs_thaw` must follow."""
        return self._number(await self._call("guest-fsfreeze-freeze", timeout=60), "guest-fsfreeze-freeze")

    async def fs_thaw(self) -> int:
        """Let the guest write again; how many file systems."""
        return self._number(await self._call("guest-fsfreeze-thaw", timeout=60), "guest-fsfreeze-thaw")

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """The content of a file in the guest, in chunks of up to 1 MiB. Raises `NotFoundError`."""
        async with self._open(path, "rb") as handle:
            arguments = {"handle": handle, "count": _FILE_CHUNK}
            while True:
                answer = await self._call("guest-file-read", arguments, limit=2 * _FILE_CHUNK)
                fields = self._object(answer, "guest-file-read")
                chunk = self._bytes(fields, "buf-b64")
                if chunk:
                    yield chunk
                if self._field(fields, "eof", bool) or not chunk:
                    return

    async def write_file(self, path: str, content: bytes | AsyncIterable[bytes]) -> int:
        """Create or replace a file in the guest; the bytes written. Its directory must exist."""
        written = 0
        async with self._open(path, "wb") as handle:
            async for chunk in _chunks(content):
                arguments = {"handle": handle, "buf-b64": base64.b64encode(chunk).decode()}
                answer = self._object(await self._call("guest-file-write", arguments), "guest-file-write")
                if self._field(answer, "count", int) != len(chunk):
                    raise ProtocolError(f"the guest agent of {self._machine} wrote part of a chunk of {path}")
                written += len(chunk)
            await self._call("guest-file-flush", {"handle": handle})
        return written

    async def close(self) -> None:
        """Leave the agent to others. The next call connects again. Idempotent."""
        async with self._turn:
            await self._drop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _exec_result(self, pid: int) -> ExecResult:
        started = time.monotonic()
        shortest, longest = _POLL_SECONDS
        while True:
            answer = await self._call("guest-exec-status", {"pid": pid}, limit=_OUTPUT_LIMIT, timeout=60)
            status = self._object(answer, "guest-exec-status")
            if self._field(status, "exited", bool):
                break
            pause = min(max(shortest, (time.monotonic() - started) * _POLL_SHARE), longest)
            if pause >= _RELEASE_SECONDS:
                await self.close()
            await asyncio.sleep(pause)
        signal = self._field(status, "signal", int, 0)
        return ExecResult(
            128 + signal if signal else self._field(status, "exitcode", int),
            self._bytes(status, "out-data"),
            self._bytes(status, "err-data"),
            self._field(status, "out-truncated", bool, False)
            or self._field(status, "err-truncated", bool, False),
        )

    async def _kill(self, pid: int | None) -> bool:
        """Best effort, for guest-exec has no counterpart that ends a command; whether the agent took it."""
        if pid is None:
            return False
        with contextlib.suppress(NagayaError, TimeoutError):
            async with asyncio.timeout(2):
                await self._call("guest-exec", {"path": "sh", "arg": ["-c", f"kill -9 {pid}"]})
                return True
        return False

    @contextlib.asynccontextmanager
    async def _open(self, path: str, mode: str) -> AsyncIterator[int]:
        handle = self._number(
            await self._call("guest-file-open", {"path": path, "mode": mode}), "guest-file-open"
        )
        try:
            yield handle
        except BaseException:
            with contextlib.suppress(NagayaError):  # the first error is the one to tell
                await self._call("guest-file-close", {"handle": handle}, timeout=2)
            raise
        await self._call("guest-file-close", {"handle": handle})

    async def _call(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        limit: int = _ANSWER_LIMIT,
        timeout: float = COMMAND_SECONDS,  # noqa: ASYNC109
        silent_seconds: float | None = None,
    ) -> object:
        """The answer of a command. With `silent_seconds`, none within that time, or an end, is success."""
        try:
            async with asyncio.timeout(timeout), self._turn:
                return await self._converse(command, arguments, limit, silent_seconds)
        except TimeoutError as error:
            message = f"the guest agent of {self._machine} did not answer {command} within {timeout:g} s"
            raise TimeoutExpiredError(message, hint=_HINT, machine=self._machine) from error
        except Refusal as refusal:
            raise self._refused(command, refusal) from refusal
        except (OSError, EOFError) as error:
            message = f"the guest agent of {self._machine} cannot be reached: {str(error) or 'it hung up'}"
            raise UnavailableError(message, hint=_HINT, machine=self._machine) from error
        except ValueError as error:
            message = f"the guest agent of {self._machine} broke the protocol at {command}: {error}"
            raise ProtocolError(message, machine=self._machine) from error

    async def _converse(
        self, command: str, arguments: Mapping[str, object] | None, limit: int, silent_seconds: float | None
    ) -> object:
        try:
            if self._stream is None:
                self._stream = await AgentStream.connect(self._path)
            self._stream.send(command, arguments)
            if silent_seconds is None:
                return await self._stream.answer(limit)
            try:
                async with asyncio.timeout(silent_seconds):
                    return await self._stream.answer(limit)
            except (TimeoutError, EOFError, ConnectionResetError):
                await self._drop()  # an answer may still come, it would be taken for the next one's
                return None
        except Refusal:
            raise
        except BaseException:
            await self._drop()  # where the stream stands is unknown now
            raise

    async def _drop(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()

    def _refused(self, command: str, refusal: Refusal) -> NagayaError:
        """The agent passes the guest's errno on as text only."""
        message = f"the guest agent of {self._machine} refused {command}: {refusal.description}"
        if refusal.kind == "CommandNotFound":
            return UnsupportedError(message, hint="see the guest's configuration of qemu-ga")
        if "No such file or directory" in refusal.description:
            return NotFoundError(message)
        if "Permission denied" in refusal.description:
            return PermissionDeniedError(message)
        return NagayaError(message)

    def _object(self, answer: object, command: str) -> Mapping[str, object]:
        if not isinstance(answer, dict):
            raise self._nonsense(command, "an object", answer)
        return answer

    def _number(self, answer: object, command: str) -> int:
        if type(answer) is not int:
            raise self._nonsense(command, "a number", answer)
        return answer

    def _field(self, answer: Mapping[str, object], name: str, kind: type[T], default: T | None = None) -> T:
        value = answer.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._nonsense(name, f"of type {kind.__name__}", value)
        return value

    def _bytes(self, answer: Mapping[str, object], name: str) -> bytes:
        text = self._field(answer, name, str, "")
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise self._nonsense(name, "base64", text) from error

    def _nonsense(self, what: str, expected: str, value: object) -> ProtocolError:
        shown = repr(value)[:80]
        return ProtocolError(
            f"the guest agent of {self._machine} sent {what} {shown}, which is not {expected}"
        )


_HINT = "is the machine up, and does qemu-guest-agent run in it?"


def _exec_request(argv: Sequence[str], env: Mapping[str, str], stdin: bytes) -> dict[str, object]:
    if not argv or not argv[0]:
        raise UsageError("there is no command to run", hint="nagaya exec MACHINE -- COMMAND ...")
    if len(stdin) > STDIN_LIMIT:
        raise UsageError(
            f"input of {len(stdin)} bytes is over the limit of {STDIN_LIMIT}", hint="copy a file in"
        )
    for name in env:
        if not name or "=" in name or name.startswith("-"):
            raise UsageError(f"{name!r} cannot name an environment variable")
    words = [*argv]
    if env:  # guest-exec can only replace the environment as a whole, PATH included
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
    request: dict[str, object] = {"path": words[0], "arg": words[1:], "capture-output": True}
    if stdin:
        request["input-data"] = base64.b64encode(stdin).decode()
    return request


async def _chunks(content: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        for start in range(0, len(content), _FILE_CHUNK):
            yield content[start : start + _FILE_CHUNK]
        return
    async for piece in content:
        for start in range(0, len(piece), _FILE_CHUNK):
            yield piece[start : start + _FILE_CHUNK]
