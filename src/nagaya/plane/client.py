"""A client of the plane's holder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError, Runstate

from nagaya.errors import NagayaError, ProtocolError, TimeoutExpiredError, UnavailableError
from nagaya.plane.balloons import BalloonStatus, balloon_from_json
from nagaya.plane.conditions import WELL, Conditions, DiskCondition, after
from nagaya.plane.config import CopyJob, Device, Layer
from nagaya.plane.demand import WorkerDemand, demand_from_json
from nagaya.plane.hotmem import HotMemoryStatus
from nagaya.plane.ports import Flow, PortRules, PortStatus, port_from_json
from nagaya.plane.shares import (
    ArbiterStatus,
    Resource,
    ShareNode,
    WaitRow,
    arbiter_from_json,
    share_to_json,
    wait_from_json,
)
from nagaya.plane.wire import device_from_json, device_to_json, job_to_json

_HINT = (
    "the plane's holder (python -m nagaya.plane) is not there; the daemon starts one, see its log plane.log"
)
_EVENT_BACKLOG = 10_000  # events that wait for one consumer
_NODES_AT_ONCE = 100  # in one message: a node has 500 bytes at most, a message 64 KiB


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device that the plane serves, with counters since it was added."""

    device: Device
    worker: str
    connected: bool
    reads: int
    writes: int
    flushes: int
    discards: int
    read_bytes: int
    written_bytes: int
    errors: int
    inflight: int
    spaceless: int  # of these, requests that wait for space on the host
    faulted: int  # requests that a fault on purpose has met
    violations: Mapping[str, int]
    last_violation: str | None

    condition: DiskCondition

    @property
    def id(self) -> str:
        return self.device.id


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Host work on disks. Progress is in bytes; `error` is set if the job has concluded before its end."""

    id: str
    kind: str
    status: str  # created, running, pending or aborting for a moment, concluded
    current_bytes: int
    total_bytes: int
    error: str | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker process. `generation` counts its starts; `pid` is None while none runs."""

    name: str
    pid: int | None
    generation: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConsoleStatus:
    """The host side of a console device. `pty` is empty if the host had none left."""

    id: str
    pty: str
    clients: int
    agent_busy: bool
    output_bytes: int
    input_bytes: int
    skipped_bytes: int
    log_dropped_bytes: int


@dataclass(frozen=True, slots=True)
class PlaneEvent:
    """Something that happened in the plane. `at` is seconds since the epoch."""

    name: str
    facts: Mapping[str, object]
    at: float


class PlaneClient:
    """A QMP connection to the holder. Commands may be called concurrently.

    Every method raises the `NagayaError` that the holder answered, or `UnavailableError` when the
    connection is gone; connect again then.
    """

    def __init__(self) -> None:
        self._qmp = QMPClient("plane")
        self._qmp.events.event_filter = self._take_event  # keeps its own, unbounded, queue and history empty
        self._listeners: set[asyncio.Queue[PlaneEvent | None]] = set()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], timeout_seconds: float = 5) -> Self:
        """Connect to the holder's socket. Raises `UnavailableError` if nobody answers there."""
        client = cls()
        try:
            async with asyncio.timeout(timeout_seconds):
                await client._qmp.connect(os.fspath(path))
        except ConnectError as error:
            raise UnavailableError(f"no plane on {path}: {error.exc}", hint=_HINT, path=str(path)) from error
        except AssertionError as error:  # of qemu.qmp: the session is over before `connect` has returned
            raise UnavailableError(f"the plane on {path} hung up", hint=_HINT, path=str(path)) from error
        except TimeoutError as error:
            message = f"the plane on {path} did not greet within {timeout_seconds:g} s"
            raise TimeoutExpiredError(message, hint=_HINT) from error
        client._watch = asyncio.create_task(client._watch_connection())
        return client

    @property
    def connected(self) -> bool:
        return self._qmp.runstate is Runstate.RUNNING

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        with contextlib.suppress(EOFError, OSError, QMPError):  # why it ended is of no use now
            await self._qmp.disconnect()
        self._end_events()

    async def wait_closed(self) -> None:
        """Return when the connection is gone."""
        if self._watch is not None:
            await asyncio.wait([self._watch])

    async def device_add(self, device: Device) -> None:
        """Serve `device`; its sockets listen when this returns.

        Raises `ConflictError` if its id or its image is taken, `NotFoundError` for a missing image, and
        `ResourceError` when the host refuses.
        """
        await self._execute("device_add", device_to_json(device))

    async def device_del(self, device_id: str) -> None:
        """Stop serving a device, after its requests in flight. Raises `NotFoundError`."""
        await self._execute("device_del", {"id": device_id})

    async def set_shares(
        self, nodes: Sequence[ShareNode], remove: Sequence[str] = (), *, resource: Resource = "disk"
    ) -> None:
        """Set the knobs of `nodes` in all workers, now and for devices to come; forget the nodes `remove`."""
        command = "set-shares" if resource == "disk" else "set-network-shares"
        rows: list[dict[str, object]] = [share_to_json(node) for node in nodes]
        rows += [{"id": node_id, "remove": True} for node_id in remove]
        for first in range(0, len(rows), _NODES_AT_ONCE):
            await self._execute(command, {"nodes": rows[first : first + _NODES_AT_ONCE]})

    async def query_arbiter(self) -> list[ArbiterStatus]:
        """The arbiter of each worker that has disks or a network."""
        return [arbiter_from_json(row) for row in _rows(await self._execute("query-arbiter"))]

    async def query_demand(self, anew: bool) -> list[WorkerDemand]:
        """What is asked of each disk of the host, and how it answers; `anew`: recorded from now on only."""
        return [demand_from_json(row) for row in _rows(await self._execute("query-demand", {"anew": anew}))]

    async def query_waits(self, node_id: str | None, since_seconds: int) -> list[WaitRow]:
        """Who waited how long and on what in the last seconds, an hour at most; of all, or below one node."""
        arguments = {"id": node_id, "since": since_seconds}
        return [wait_from_json(row) for row in _rows(await self._execute("query-waits", arguments))]

    async def job_start(self, job: CopyJob) -> None:
        """Begin host work; its end is told by the event JOB_STATUS_CHANGE with the status concluded.

        Raises `ConflictError` if there is such a job or a machine has one of the images open,
        `NotFoundError` for a missing image, `ResourceError` when the host refuses.
        """
        await self._execute("job-start", job_to_json(job))

    async def job_cancel(self, job_id: str) -> None:
        """Give a job up, if it has not concluded; what it has copied stays. Raises `NotFoundError`."""
        await self._execute("job-cancel", {"id": job_id})

    async def query_jobs(self) -> list[JobStatus]:
        """The jobs that are under way, and the last 32 that have concluded."""
        return [
            JobStatus(
                row["id"],
                row["type"],
                row["status"],
                row["current-progress"],
                row["total-progress"],
                row["error"],
            )
            for row in _rows(await self._execute("query-jobs"))
        ]

    async def query_devices(self) -> list[DeviceStatus]:
        """All devices, in the order in which they were added."""
        return [_device_status(row) for row in _rows(await self._execute("query-devices"))]

    async def set_layers(self, device_id: str, layers: Sequence[Layer]) -> None:
        """Serve a disk from other image files; what the guest wrote before is durable in the old ones.

        Raises `ConflictError` if one is in use, and `ResourceError` if the host refuses; the disk goes on
        with the old files then.
        """
        await self._execute("set-layers", {"id": device_id, "layers": [asdict(one) for one in layers]})

    async def set_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a disk, in effect when this returns; None ends them (docs/plane.md).

        Raises `NotFoundError`, and `UsageError` for what the plane does not take.
        """
        await self._execute("set-faults", {"id": device_id, **(faults or {})})

    async def set_balloon(
        self, device_id: str, size: int | None = None, *, stats_ms: int | None = None
    ) -> None:
        """Have a guest give `size` bytes, or ask it for statistics every `stats_ms`; None leaves it as it is.

        It is told at once, again if it has been told before, and obeys in its own time, or never. Raises
        `NotFoundError` and `UsageError`.
        """
        wish = {name: one for name, one in (("size", size), ("stats_ms", stats_ms)) if one is not None}
        await self._execute("set-balloon", {"id": device_id, **wish})

    async def query_balloons(self) -> list[BalloonStatus]:
        """The balloons of all machines, and what their guests say of their memory."""
        return [balloon_from_json(row) for row in _rows(await self._execute("query-balloons"))]

    async def set_memory(self, device_id: str, requested: int) -> None:
        """Ask a guest to have `requested` bytes plugged; `query_memory` tells how far it is.

        Raises `NotFoundError`, and `UsageError` unless they are whole blocks within the region.
        """
        await self._execute("set-memory", {"id": device_id, "requested": requested})

    async def query_memory(self) -> list[HotMemoryStatus]:
        """The devices that plug memory into guests."""
        return [HotMemoryStatus(**row) for row in _rows(await self._execute("query-memory"))]

    async def query_ports(self, network: str | None = None) -> list[PortStatus]:
        """The ports of a network, or of all."""
        return [
            port_from_json(row) for row in _rows(await self._execute("query-ports", {"network": network}))
        ]

    async def set_port(self, device_id: str, rules: PortRules, *, link: bool | None = None) -> None:
        """Give a machine's port other rules, in effect when this returns; None leaves the link as it is.

        Connections that the rules do not allow end. Raises `NotFoundError` and `UsageError`.
        """
        arguments: dict[str, Any] = {"id": device_id, "rules": asdict(rules)}
        await self._execute("set-port", arguments | ({} if link is None else {"link": link}))

    async def set_port_faults(self, device_id: str, faults: Mapping[str, Any] | None) -> None:
        """Lay faults upon a port's link, in effect when this returns; None ends them (docs/plane.md).

        Raises `NotFoundError`, and `UsageError` for what the plane does not take.
        """
        await self._execute("set-port-faults", {"id": device_id, **(faults or {})})

    async def query_flows(self, device_id: str, limit: int = 20) -> list[Flow]:
        """The connections of a port with the most bytes.

        Of a port without security they are counted for a minute from now on.
        """
        rows = await self._execute("query-flows", {"id": device_id, "limit": limit})
        return [Flow(**row) for row in _rows(rows)]

    async def capture_start(self, device_id: str, path: str, *, snaplen: int, limit: int) -> None:
        """Write the frames of a port to the file or FIFO at `path`, as pcap.

        At most `snaplen` bytes of each and `limit` in all. Raises `ConflictError` if it is captured already.
        """
        arguments = {"id": device_id, "path": path, "snaplen": snaplen, "limit": limit}
        await self._execute("capture-start", arguments)

    async def capture_stop(self, device_id: str) -> tuple[int, int]:
        """End it: frames written, and missed, by the worker that there is. Raises `NotFoundError`."""
        counts = await self._execute("capture-stop", {"id": device_id})
        if not isinstance(counts, dict):
            raise ProtocolError(f"the plane answered capture-stop with {counts!r}")
        return counts["packets"], counts["missed"]

    async def query_workers(self) -> list[WorkerStatus]:
        return [
            WorkerStatus(row["name"], row["pid"], row["generation"], tuple(row["devices"]))
            for row in _rows(await self._execute("query-workers"))
        ]

    async def query_consoles(self) -> list[ConsoleStatus]:
        return [ConsoleStatus(**row) for row in _rows(await self._execute("query-consoles"))]

    async def pid(self) -> int:
        """The holder's process id."""
        status = await self._execute("query-status")
        if not isinstance(status, dict) or not isinstance(status.get("pid"), int):
            raise ProtocolError(f"the plane answered query-status with {status!r}")
        return int(status["pid"])

    async def quit(self) -> None:
        """End the holder. All machines lose their devices."""
        await self._execute("quit")

    async def events(self) -> AsyncGenerator[PlaneEvent, None]:
        """Events from now on; ends when the connection does. A consumer that is too slow loses the oldest."""
        queue: asyncio.Queue[PlaneEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            if not self.connected:
                return
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._listeners.discard(queue)

    async def conditions(self) -> AsyncGenerator[Conditions, None]:
        """The devices that are not well: those of now, then at every change, until the connection ends."""
        queue: asyncio.Queue[PlaneEvent | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            found = {device.id: device.condition for device in await self.query_devices()}
            found |= {port.id: DiskCondition(faults=port.faults) for port in await self.query_ports()}
            now: Conditions = {device: one for device, one in found.items() if one != WELL}
            yield now
            while self.connected and (event := await queue.get()) is not None:
                before, now = now, after(now, event.name, event.facts)
                if now != before:
                    yield now
        finally:
            self._listeners.discard(queue)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        try:
            return await self._qmp.execute(command, arguments)
        except ExecuteError as error:
            raise _from_qmp(error) from error
        except QMPError as error:
            message = f"the plane's connection is gone ({command}: {error})"
            raise UnavailableError(message, hint=_HINT) from error

    def _take_event(self, message: Message) -> bool:
        stamp: Any = message["timestamp"]
        facts: Any = message.get("data", {})
        event = PlaneEvent(str(message["event"]), facts, stamp["seconds"] + stamp["microseconds"] / 1e6)
        for queue in self._listeners:
            if queue.qsize() >= _EVENT_BACKLOG:
                queue.get_nowait()
            queue.put_nowait(event)
        return False

    async def _watch_connection(self) -> None:
        while self._qmp.runstate is Runstate.RUNNING:
            await self._qmp.runstate_changed()
        self._end_events()

    def _end_events(self) -> None:
        for queue in self._listeners:
            queue.put_nowait(None)


def _from_qmp(error: ExecuteError) -> NagayaError:
    details: Any = error.received["error"]
    body = details.get("data")
    if isinstance(body, dict):
        return NagayaError.from_json(body)
    return NagayaError(f"the plane refused {error.sent.get('execute')}: {error}")


def _rows(answer: object) -> list[dict[str, Any]]:
    if not isinstance(answer, list):
        raise ProtocolError(f"the plane answered with {answer!r} instead of a list")
    return answer


def _device_status(row: dict[str, Any]) -> DeviceStatus:
    numbers = ("reads", "writes", "flushes", "discards", "read_bytes", "written_bytes", "errors", "inflight")
    return DeviceStatus(
        device=device_from_json(row["config"]),
        worker=row["worker"],
        connected=bool(row.get("connected", False)),
        violations=row.get("violations", {}),
        last_violation=row.get("last_violation"),
        condition=DiskCondition(
            spaceless=bool(row.get("spaceless")),
            flush_failed=bool(row.get("flush_error")),
            faults=row.get("faults"),
        ),
        **{name: int(row.get(name, 0)) for name in (*numbers, "spaceless", "faulted")},
    )
