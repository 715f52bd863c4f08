"""Machines: made, found and commanded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote

from nagaya.connection import ANSWER_TIME, POLL_TIME
from nagaya.errors import TimeoutExpiredError
from nagaya.models.machine import MachineInfo, MachineState

if TYPE_CHECKING:
    from nagaya.models.demand import DemandAnswer
    from nagaya.models.fault import DiskFaults
    from nagaya.models.history import JournalEntry
    from nagaya.models.host import StartWait
    from nagaya.models.login import LoginAnswer
    from nagaya.models.memory import MachineMemoryInfo, MemoryWhy
    from nagaya.models.relocation import RelocationAnswer
    from nagaya.models.shares import ChangesAnswer
    from nagaya.models.waits import WaitResource, WhyAnswer
    from nagaya.sdk.client import Client
    from nagaya.sdk.tenants import Settings
    from nagaya.spec import MachineSpec

WaitFor = Literal["running", "stopped", "agent"]


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a guest command ended. `truncated`: the guest agent cut an output at its limit (16 MiB)."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


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

    def named(self, name: str) -> Machine:
        """The machine with this name or id, before anything is known of it.

        Nothing is asked now; if there is none, the first use that asks raises `NotFoundError`.
        """
        return Machine(self._client, name)

    def create(self, spec: MachineSpec | Mapping[str, Any], *, start: bool = False) -> Machine:
        """Make a machine, and start it if asked."""
        answer = self._client.request("POST", "/v1/machines", body=spec, query={"start": start}, within=120)
        return Machine(self._client, MachineInfo.from_json(answer))


class Machine:
    """One machine. `info` is what the last answer said; `refresh` asks again."""

    def __init__(self, client: Client, known: MachineInfo | str) -> None:
        """`known`: what the daemon said of it, or only its name or id."""
        self._client = client
        self._key = known if isinstance(known, str) else known.id
        self._info = None if isinstance(known, str) else known

    def __str__(self) -> str:
        return self._key if self._info is None else self._info.name

    def __repr__(self) -> str:
        return f"<Machine {self} {'unseen' if self._info is None else self._info.state}>"

    @property
    def info(self) -> MachineInfo:
        """What the last answer said; asks if there was none."""
        return self._ask("GET") if self._info is None else self._info

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
        self._ask("GET")
        return self

    def start(self) -> Self:
        """Start it; returns when its process runs."""
        return self._act("start", within=120)

    def queue(self, timeout: float | None = None, watcher: Callable[[StartWait], None] | None = None) -> Self:
        """Start it as soon as the host has room, in the order of those that wait; returns when it runs.

        It keeps its place if the daemon restarts at any moment; interrupted, it gives it up. Raises
        `TimeoutExpiredError` after `timeout` seconds, with what it waited for, and `ResourceError` for what
        this host never has.
        """
        from nagaya.models.host import StartWait
        from nagaya.sdk.patience import patiently

        path = self._path("queue")

        def ask(method: str, within: float, **query: object) -> StartWait:
            answer = patiently(lambda: self._client.request(method, path, query=query, within=within))
            return StartWait.from_json(answer)

        found = ask("POST", 120, timeout=timeout)
        try:
            while found.state == "waiting":
                if watcher is not None:
                    watcher(found)
                found = ask("GET", POLL_TIME + 30, wait=POLL_TIME)
        except BaseException:
            self.leave_queue()
            raise
        if found.state == "ended":
            raise TimeoutExpiredError(f"{self} was not started: {found.reason}", machine=found.machine)
        return self.refresh()

    def leave_queue(self) -> None:
        """It does not wait for room any more."""
        self._client.request("DELETE", self._path("queue"))

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

    def set(self, settings: Settings, *, dry_run: bool = False) -> ChangesAnswer:
        """Set fields of its specification, all or none: `{"disk.weight": 400, "disk.limit": "50MiB/s"}`.

        Knobs of a machine that runs are in effect when this returns. None, or "none", is a field's default.
        """
        from nagaya.sdk.tenants import patch

        return patch(self._client, self._path(), settings, dry_run)

    def why(self, since: int = 60, resource: WaitResource | None = None) -> WhyAnswer:
        """Its waits in the last `since` seconds (an hour is kept), of one resource or all, and for whom."""
        from nagaya.models.waits import WhyAnswer

        query = {"since": since, "resource": resource}
        return WhyAnswer.from_json(self._client.request("GET", self._path("why"), query=query))

    def demand(self) -> DemandAnswer:
        """What it asked of the host: percentiles of each hour of two weeks, and samples of the last hour."""
        from nagaya.models.demand import DemandAnswer

        return DemandAnswer.from_json(self._client.request("GET", self._path("demand")))

    def memory(self) -> MachineMemoryInfo:
        """What it has of the host's memory, while it runs."""
        from nagaya.models.memory import MachineMemoryInfo

        return MachineMemoryInfo.from_json(self._client.request("GET", self._path("memory")))

    def why_memory(self, since: int = 60) -> MemoryWhy:
        """Why it has the memory that it has, and what was moved in the last `since` seconds."""
        from nagaya.models.memory import MemoryWhy

        answer = self._client.request("GET", self._path("why/memory"), query={"since": since})
        return MemoryWhy.from_json(answer)

    def relocate(
        self,
        *,
        swap: int | str | None = None,
        resident: bool | None = None,
        huge: bool | None = None,
        node: int | None = None,
    ) -> RelocationAnswer:
        """Move its memory while it runs, by one of these; what came of it.

        `swap` bytes go to the host's swap, with `resident` all of it comes back, `huge` is into huge pages or
        out of them, `node` a NUMA node. Raises `UnavailableError` or `UnsupportedError` if the host cannot.
        """
        from nagaya.models.relocation import RelocationAnswer

        order = {"swap": swap, "resident": resident, "huge": huge, "node": node}
        body = {key: value for key, value in order.items() if value is not None}
        answer = self._client.request("POST", self._path("memory"), body=body, within=600)
        return RelocationAnswer.from_json(answer)

    def delete(self, *, force: bool = False) -> None:
        """Remove it and its disks; `force` ends it first if it runs."""
        self._client.request("DELETE", self._path(), query={"force": force}, within=120)

    def wait(self, what: WaitFor = "running", timeout: float = 60.0) -> Self:
        """Wait until it runs, is down, or its guest agent answers. Raises `TimeoutExpiredError`."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                poll = min(left, POLL_TIME)
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
        import base64

        from nagaya.models.history import ExecAnswer

        body = {
            "argv": list(argv),
            "stdin": base64.b64encode(stdin).decode(),
            "env": dict(env or {}),
            "timeout": timeout,
            "wait": wait,
        }
        told = self._client.request("POST", self._path("exec"), body=body, within=timeout + wait + 30)
        answer = ExecAnswer.from_json(told)
        return ExecResult(
            answer.exit_code,
            base64.b64decode(answer.stdout),
            base64.b64decode(answer.stderr),
            answer.truncated,
        )

    def login(self, key: str, *, user: str = "root", wait: float = 0.0) -> LoginAnswer:
        """Let the public ssh key `key` in as `user`, through the guest agent; the machine's host keys.

        Raises `UnavailableError` if the guest has no ssh server, `NotFoundError` if it has no such user.
        """
        from nagaya.models.login import LoginAnswer

        body = {"key": key, "user": user, "wait": wait}
        told = self._client.request("POST", self._path("login"), body=body, within=wait + 60)
        return LoginAnswer.from_json(told)

    def logs(
        self, *, tail: int | None = None, raw: bool = False, source: Literal["console", "engine"] = "console"
    ) -> bytes:
        """What it printed, all or the last `tail` lines; without control sequences unless `raw`."""
        return b"".join(self._client.stream(self._path("logs"), tail=tail, raw=raw, source=source))

    def follow_logs(
        self, *, tail: int | None = None, raw: bool = False, source: Literal["console", "engine"] = "console"
    ) -> Iterator[bytes]:
        """Like `logs`, and then what comes, until the machine is deleted."""
        return self._client.stream(self._path("logs"), tail=tail, raw=raw, source=source, follow=True)

    @contextmanager
    def console(self) -> Iterator[Any]:
        """Its console as a `websockets.sync` connection: binary messages, the scrollback's end first."""
        with self._client.websocket(self._path("console")) as connection:
            yield connection

    def faults(self) -> list[DiskFaults]:
        """The faults on purpose that are laid upon its disks."""
        from nagaya.models.fault import DiskFaults

        return [DiskFaults.from_json(one) for one in self._client.request("GET", self._path("faults"))]

    def set_faults(self, disk: int, **faults: Any) -> None:
        """Lay faults upon a disk, in the place of those that are there; without any, end them.

        `set_faults(0, latency_us=5000, error_rate=0.01)`; the fields are those of `DiskFaults`. They are in
        effect when this returns, and end with the machine's run.
        """
        path = self._path(f"disks/{disk}/faults")
        if faults:
            self._client.request("PUT", path, body=faults)
        else:
            self._client.request("DELETE", path)

    def journal(self) -> list[JournalEntry]:
        """Its history, oldest first."""
        from nagaya.models.history import JournalEntry

        return [JournalEntry.from_json(one) for one in self._client.request("GET", self._path("journal"))]

    def _act(
        self, action: str, within: float = ANSWER_TIME, query: Mapping[str, object] | None = None
    ) -> Self:
        self._ask("POST", action, query, within)
        return self

    def _ask(
        self,
        method: str,
        action: str = "",
        query: Mapping[str, object] | None = None,
        within: float = ANSWER_TIME,
    ) -> MachineInfo:
        answer = self._client.request(method, self._path(action), query=query, within=within)
        self._info = MachineInfo.from_json(answer)
        self._key = self._info.id  # a name may go to another machine
        return self._info

    def _path(self, action: str = "") -> str:
        return f"{_machine(self._key)}/{action}" if action else _machine(self._key)


def _machine(name: str) -> str:
    return f"/v1/machines/{quote(name, safe='')}"
