"""The Python client: `with Client() as client: client.machines.create(spec).start()`.

Everything raises the errors of `nagaya.errors`, as the daemon raised them. docs/api.md has the API beneath.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from nagaya.connection import ANSWER_TIME, Connection
from nagaya.errors import ConflictError, NagayaError, TimeoutExpiredError, UnavailableError
from nagaya.models.host import HostInfo, VersionInfo
from nagaya.models.image import ImageInfo, KernelInfo
from nagaya.models.machine import ExecAnswer, JournalEntry, MachineInfo, MachineState
from nagaya.models.operation import OperationInfo, OperationState
from nagaya.paths import Paths

if TYPE_CHECKING:
    from nagaya.spec import MachineSpec

WaitFor = Literal["running", "stopped", "agent"]

_POLL_TIME = 20.0  # s that one long poll lasts at the daemon
_START_TIME = 30.0  # s until a daemon that we start must answer


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a guest command ended. `truncated`: the guest agent cut an output at its limit (16 MiB)."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class Client(Connection):
    """A connection to the daemon of `paths` (default: this user's). Use it as a context manager."""

    def __init__(self, paths: Paths | None = None) -> None:
        super().__init__(paths)
        self.machines = Machines(self)
        self.images = Images(self)
        self.kernels = Kernels(self)
        self.operations = Operations(self)

    def version(self) -> VersionInfo:
        """The daemon's version."""
        return VersionInfo.from_json(self.request("GET", "/v1/version"))

    def host(self) -> HostInfo:
        """The host, and the processes of this Nagaya."""
        return HostInfo.from_json(self.request("GET", "/v1/host"))

    def apply(
        self,
        machines: Sequence[MachineSpec | Mapping[str, Any]],
        images: Mapping[str, Any] | None = None,
        *,
        source: str = "",
        recreate: bool = False,
        prune: bool = False,
    ) -> Operation:
        """Make it so: build missing images, create, update and start machines. Idempotent.

        The operation's result is `{"machines": [{"name", "action"}], "images": [{"name", "action"}]}`. A
        running machine whose spec changed is a `ConflictError` unless `recreate`; `prune` deletes what an
        earlier `apply` with the same `source` made and this one leaves out.
        """
        body = {
            "machines": [_json(spec) for spec in machines],
            "images": {name: _json(recipe) for name, recipe in (images or {}).items()},
            "source": source,
            "recreate": recreate,
            "prune": prune,
        }
        return Operation(self, OperationInfo.from_json(self.request("POST", "/v1/apply", body=body)))

    def down(self, machines: Sequence[str], *, keep: bool = False, timeout: float = 30.0) -> Operation:
        """Stop the named machines and delete them (`keep`: only stop); unknown names are passed over."""
        body = {"machines": list(machines), "keep": keep, "timeout": timeout}
        return Operation(self, OperationInfo.from_json(self.request("POST", "/v1/down", body=body)))

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come: `{"event": "machine" | "operation" | "deleted", ...}`."""
        with self.websocket("/v1/events") as connection:
            for message in connection:
                yield json.loads(message)


class Machines:
    """`client.machines`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Machine]:
        """All machines, by name."""
        answer = self._client.request("GET", "/v1/machines")
        return [Machine(self._client, MachineInfo.from_json(one)) for one in answer]

    def get(self, name: str) -> Machine:
        """The machine with this name or id."""
        return Machine(self._client, MachineInfo.from_json(self._client.request("GET", _machine(name))))

    def create(self, spec: MachineSpec | Mapping[str, Any], *, start: bool = False) -> Machine:
        """Make a machine, and start it if asked."""
        answer = self._client.request(
            "POST", "/v1/machines", body=_json(spec), query={"start": start}, within=120
        )
        return Machine(self._client, MachineInfo.from_json(answer))


class Machine:
    """One machine. `info` is what the last answer said; `refresh` asks again."""

    def __init__(self, client: Client, info: MachineInfo) -> None:
        self._client = client
        self.info = info

    def __repr__(self) -> str:
        return f"<Machine {self.name} {self.state}>"

    @property
    def id(self) -> str:
        """12 hex digits, its own for ever."""
        return self.info.id

    @property
    def name(self) -> str:
        """What people call it."""
        return self.info.name

    @property
    def state(self) -> MachineState:
        """Its state at the last answer."""
        return MachineState(self.info.state)

    def refresh(self) -> Self:
        """Ask the daemon again."""
        self.info = MachineInfo.from_json(self._client.request("GET", _machine(self.id)))
        return self

    def start(self) -> Self:
        """Start it; returns when its process runs."""
        return self._act("start", within=120)

    def stop(self, timeout: float = 30.0) -> Self:
        """Ask it to shut down, end it after `timeout` seconds; returns when it is gone."""
        return self._act("stop", within=timeout + 30, query={"timeout": timeout})

    def kill(self) -> Self:
        """End it at once."""
        return self._act("kill")

    def pause(self) -> Self:
        """Stop its CPUs."""
        return self._act("pause")

    def resume(self) -> Self:
        """Let its CPUs run again."""
        return self._act("resume")

    def restart(self, timeout: float = 30.0, *, hard: bool = False) -> Self:
        """Stop it and start it again; `hard` pulls the plug first (a reset)."""
        return self._act("restart", within=timeout + 120, query={"timeout": timeout, "hard": hard})

    def delete(self, *, force: bool = False) -> None:
        """Remove it and its disks; `force` ends it first if it runs."""
        self._client.request("DELETE", _machine(self.id), query={"force": force}, within=120)

    def wait(self, what: WaitFor = "running", timeout: float = 60.0) -> Self:
        """Wait until it runs, is down, or its guest agent answers. Raises `TimeoutExpiredError`."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                poll = min(left, _POLL_TIME)
                self._act("wait", within=poll + 30, query={"until": what, "timeout": poll})
            except TimeoutExpiredError:
                if time.monotonic() >= deadline:
                    raise
            else:
                return self

    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        wait: float = 0.0,
    ) -> ExecResult:
        """Run a command in the guest, as root, through its agent, which has `wait` seconds to come up."""
        body = {
            "argv": list(argv),
            "stdin": base64.b64encode(stdin).decode(),
            "env": dict(env or {}),
            "timeout": timeout,
            "wait": wait,
        }
        path = f"{_machine(self.id)}/exec"
        answer = ExecAnswer.from_json(
            self._client.request("POST", path, body=body, within=timeout + wait + 30)
        )
        return ExecResult(
            answer.exit_code,
            base64.b64decode(answer.stdout),
            base64.b64decode(answer.stderr),
            answer.truncated,
        )

    def logs(
        self, *, tail: int | None = None, raw: bool = False, source: Literal["console", "engine"] = "console"
    ) -> bytes:
        """What it printed, all or the last `tail` lines; without control sequences unless `raw`."""
        return b"".join(self._client.stream(f"{_machine(self.id)}/logs", tail=tail, raw=raw, source=source))

    def follow_logs(
        self, *, tail: int | None = None, raw: bool = False, source: Literal["console", "engine"] = "console"
    ) -> Iterator[bytes]:
        """Like `logs`, and then what comes, until the machine is deleted."""
        return self._client.stream(
            f"{_machine(self.id)}/logs", tail=tail, raw=raw, source=source, follow=True
        )

    @contextmanager
    def console(self) -> Iterator[Any]:
        """Its console as a `websockets.sync` connection: binary messages, the scrollback's end first."""
        with self._client.websocket(f"{_machine(self.id)}/console") as connection:
            yield connection

    def journal(self) -> list[JournalEntry]:
        """Its history, oldest first."""
        return [
            JournalEntry.from_json(one) for one in self._client.request("GET", f"{_machine(self.id)}/journal")
        ]

    def _act(
        self, action: str, within: float = ANSWER_TIME, query: Mapping[str, object] | None = None
    ) -> Self:
        answer = self._client.request("POST", f"{_machine(self.id)}/{action}", query=query, within=within)
        self.info = MachineInfo.from_json(answer)
        return self


class Images:
    """`client.images`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[ImageInfo]:
        """The images in the store, by name."""
        return [ImageInfo.from_json(one) for one in self._client.request("GET", "/v1/images")]

    def build(self, name: str, recipe: object) -> Operation:
        """Build `recipe` (a `Recipe` or its JSON) under `name`."""
        body = {"name": name, "recipe": _json(recipe)}
        return Operation(
            self._client, OperationInfo.from_json(self._client.request("POST", "/v1/images/build", body=body))
        )

    def import_file(self, name: str, path: str | os.PathLike[str]) -> Operation:
        """Copy a raw image file of the daemon's host into the store."""
        body = {"name": name, "path": str(os.path.abspath(path))}  # noqa: PTH100  # no symlink is to be resolved
        return Operation(
            self._client,
            OperationInfo.from_json(self._client.request("POST", "/v1/images/import", body=body)),
        )

    def remove(self, name: str) -> None:
        """Remove an image that no machine uses."""
        self._client.request("DELETE", f"/v1/images/{quote(name, safe='')}")


class Kernels:
    """`client.kernels`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[KernelInfo]:
        """The guest kernels that are there."""
        return [KernelInfo.from_json(one) for one in self._client.request("GET", "/v1/kernels")]

    def build(self) -> Operation:
        """Build our User-mode Linux kernel (minutes)."""
        return Operation(
            self._client, OperationInfo.from_json(self._client.request("POST", "/v1/kernels/build"))
        )


class Operations:
    """`client.operations`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self) -> list[Operation]:
        """The operations that run or ran lately, oldest first."""
        answer = self._client.request("GET", "/v1/operations")
        return [Operation(self._client, OperationInfo.from_json(one)) for one in answer]

    def get(self, operation_id: str) -> Operation:
        """One of them."""
        answer = self._client.request("GET", f"/v1/operations/{quote(operation_id, safe='')}")
        return Operation(self._client, OperationInfo.from_json(answer))


class Operation:
    """A long job of the daemon. It goes on without us; `info` is what the last answer said."""

    def __init__(self, client: Client, info: OperationInfo) -> None:
        self._client = client
        self.info = info

    def watch(self) -> Iterator[OperationInfo]:
        """Its progress, first what is known, then each change, until it has ended."""
        yield self.info
        path = f"/v1/operations/{self.info.id}"
        while self.info.state == OperationState.RUNNING:
            answer = self._client.request(
                "GET", path, query={"wait": _POLL_TIME, "after": self.info.revision}, within=_POLL_TIME + 30
            )
            previous, self.info = self.info, OperationInfo.from_json(answer)
            if self.info.revision != previous.revision:
                yield self.info

    def wait(self, watcher: Callable[[OperationInfo], None] | None = None) -> dict[str, Any]:
        """Wait for its end. Returns its result, or raises its error."""
        for info in self.watch():
            if watcher is not None:
                watcher(info)
        if self.info.error is not None:
            raise NagayaError.from_json(self.info.error)
        return self.info.result or {}

    def cancel(self) -> OperationInfo:
        """Ask it to stop and wait for that; what it had half made is removed."""
        answer = self._client.request("POST", f"/v1/operations/{self.info.id}/cancel", within=120)
        self.info = OperationInfo.from_json(answer)
        return self.info


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
            return _patient(lambda: client.host().daemon_pid)
        return client.host().daemon_pid


def _start_daemon(paths: Paths, program: Sequence[str]) -> None:
    """Start one and wait until it says that it is ready, or ends."""
    ready, told = os.pipe()
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                *program,
                "--ready-fd",
                str(told),
                "--log-file",
                str(paths.state / "daemon.log"),
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
    if process.returncode == ConflictError.exit_code:
        raise ConflictError(complaint.removeprefix("nagayad: "))
    raise UnavailableError(
        f"the daemon did not start: {complaint or 'it ended without a word'}",
        hint="run `nagaya daemon` in a terminal to watch it",
    )


def _patient(ask: Callable[[], int]) -> int:
    """What `ask` returns once the daemon answers. Raises its error if that takes too long."""
    deadline = time.monotonic() + _START_TIME
    while True:
        try:
            return ask()
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


_NOTHING = b"\0"


def _read_until(pipe: int, seconds: float) -> bytes:
    """What the pipe says first, b"" at its end, `_NOTHING` after `seconds`."""
    import select

    readable, _, _ = select.select([pipe], [], [], seconds)
    return os.read(pipe, 64) if readable else _NOTHING


def _machine(name: str) -> str:
    return f"/v1/machines/{quote(name, safe='')}"


def _json(thing: Any) -> Any:
    """A pydantic model or what is JSON already."""
    return thing.model_dump(mode="json") if hasattr(thing, "model_dump") else dict(thing)
