"""The commands of the plane's QMP service: devices are added, deleted and looked at (docs/plane.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from nagaya import __version__
from nagaya.errors import ConflictError, NagayaError, NotFoundError, ResourceError, UsageError
from nagaya.plane import arbitration, balloons, hotmem, jobs, portorders
from nagaya.plane.arbitration import Arbitration
from nagaya.plane.balloons import Balloons
from nagaya.plane.config import (
    BalloonDevice,
    BlkDevice,
    ConsoleDevice,
    Device,
    MemDevice,
    NetDevice,
    UplinkDevice,
)
from nagaya.plane.hotmem import HotMemory
from nagaya.plane.hub import ConsoleHub
from nagaya.plane.jobs import Jobs
from nagaya.plane.portorders import PortOrders
from nagaya.plane.shares import share_to_json
from nagaya.plane.sockets import Listener
from nagaya.plane.storage import ImageKey, OpenImages, handed_over
from nagaya.plane.uplinks import OpenUplink
from nagaya.plane.wire import device_from_json, device_to_json, layer_to_core
from nagaya.qmp import Command, version_info

CHARS_WORKER = "chars"  # consoles and rng share one worker; their work is small
BALLOONS_WORKER = "balloons"  # and mem devices: to give memory back takes milliseconds, too long for consoles
_PORTS = (
    {"name": "", "console": True},
    {"name": "org.qemu.guest_agent.0", "console": False},  # the name that qemu-ga looks for
)

log = logging.getLogger(__name__)
T = TypeVar("T")


class Core(arbitration.Core, balloons.Core, hotmem.Core, jobs.Core, portorders.Core, Protocol):
    """What the service needs of `nagaya._core.Plane`; the contract is in `_core.pyi`."""

    def device_add(self, config: str, fds: Sequence[int]) -> None: ...
    def device_del(self, id: str) -> None: ...  # noqa: A002
    def set_faults(self, id: str, faults: str) -> None: ...  # noqa: A002
    def set_layers(self, id: str, config: str, fds: Sequence[int]) -> None: ...  # noqa: A002
    def query(self) -> str: ...
    def event_fd(self) -> int: ...
    def take_events(self) -> list[str]: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Served:
    """A device that is served, and all that the holder keeps open for it."""

    device: Device
    config: dict[str, object]
    stack: contextlib.AsyncExitStack
    images: OpenImages | None = None
    hub: ConsoleHub | None = None


class Service:
    """Owns the devices. `emit` sends an event to the clients; `on_quit` is called by the command `quit`."""

    def __init__(
        self, core: Core, emit: Callable[[str, Mapping[str, object]], None], on_quit: Callable[[], None]
    ) -> None:
        self._core = core
        self._emit = emit
        self._on_quit = on_quit
        self._devices: dict[str, _Served] = {}
        self._busy: set[str] = set()
        self._jobs: set[asyncio.Task[object]] = set()
        self._core_pool = ThreadPoolExecutor(
            4, "core"
        )  # device_del may wait for a slow disk, others must not
        self._log_pool = ThreadPoolExecutor(2, "log")
        self.commands: dict[str, Command] = {
            "device_add": lambda arguments: self._finish(self._device_add(arguments)),
            "device_del": lambda arguments: self._finish(self._device_del(arguments)),
            "query-commands": self._query_commands,
            "query-consoles": self._query_consoles,
            "query-devices": self._query_devices,
            "query-faults": self._query_faults,
            "query-status": self._query_status,
            "query-version": self._query_version,
            "query-workers": self._query_workers,
            "quit": self._quit,
            "set-faults": lambda arguments: self._finish(self._set_faults(arguments)),
            "set-layers": lambda arguments: self._finish(self._set_layers(arguments)),
        }
        self._arbitration = Arbitration(core, self._in_core)
        self._host_work = Jobs(core, self._in_core, emit, self._users_of, self._finish)
        self._ports = PortOrders(
            core, self._in_core, emit, find=self._find, changed=self._port_changed, finish=self._finish
        )
        memory = (Balloons(core, self._in_core), HotMemory(core, self._in_core, emit, self._finish))
        for part in (self._arbitration, *memory, self._host_work, self._ports):
            self.commands |= part.commands

    @property
    def device_count(self) -> int:
        return len(self._devices)

    @property
    def machines(self) -> set[str]:
        """Ids of the machines that have a device here."""
        return {device_id.partition("/")[0] for device_id in self._devices if not device_id.startswith("%")}

    def start(self) -> None:
        """Forward the core's events from now on."""
        asyncio.get_running_loop().add_reader(self._core.event_fd(), self._forward_events)

    async def close(self) -> None:
        """Let running commands finish, then remove all devices."""
        if self._jobs:
            await asyncio.wait(self._jobs)
        await self._host_work.close()
        for served in list(self._devices.values()):
            try:
                await self._remove(served)
            except NagayaError as error:
                log.error("device not removed", extra={"device": served.device.id, "error": str(error)})
        asyncio.get_running_loop().remove_reader(self._core.event_fd())
        await self._in_core(self._core.close)
        self._core_pool.shutdown()
        self._log_pool.shutdown(wait=False)  # a write that hangs must not keep us

    async def _device_add(self, arguments: Mapping[str, object]) -> object:
        device = device_from_json(arguments)
        with self._claim(device.id):
            if device.id in self._devices:
                raise ConflictError(
                    f"device {device.id} exists", hint="delete it first (device_del)", id=device.id
                )
            async with contextlib.AsyncExitStack() as stack:
                served = _Served(device, {}, stack)
                try:
                    await self._serve(served)
                except OSError as error:
                    raise _os_error(f"device {device.id} cannot be added", error) from error
                served.stack = stack.pop_all()
            self._devices[device.id] = served
        log.info("device added", extra={"device": device.id, "worker": served.config["worker"]})
        self._emit("DEVICE_ADDED", {"device": device.id})
        return {}

    async def _serve(self, served: _Served) -> None:
        device, stack = served.device, served.stack
        config: dict[str, object] = {"driver": device.driver, "id": device.id, "worker": CHARS_WORKER}
        shares: list[dict[str, object]] = []
        fds: list[int] = []
        if isinstance(device, BlkDevice):
            # In a thread: file systems can be slow, and a holder is looked for among all processes.
            images = await self._in_core(OpenImages, device, self._users_of)
            served.images = stack.enter_context(images)
            fds += images.fds
            config |= _blk_config(device, images)
            shares = [share_to_json(node) for node in device.shares]
            if device.direct and not images.direct:
                log.warning("file system refuses O_DIRECT, using its cache", extra={"device": device.id})
        elif isinstance(device, ConsoleDevice):
            served.hub = hub = ConsoleHub(device, self._log_pool)
            await hub.open()
            stack.push_async_callback(hub.close)
            fds += [end.fileno() for end in hub.guest_ends]
            config["ports"] = _PORTS[1:] if device.serial_socket else _PORTS
        elif isinstance(device, BalloonDevice):
            config |= {"worker": BALLOONS_WORKER, "stats_ms": device.stats_ms}
        elif isinstance(device, MemDevice):
            sizes = {"start": device.start, "size": device.size, "requested": device.requested}
            config |= {"worker": BALLOONS_WORKER, **sizes}
        elif isinstance(device, NetDevice):
            config |= _net_config(device)
            shares = [share_to_json(node) for node in device.shares]
        elif isinstance(device, UplinkDevice):
            uplink = stack.enter_context(await self._in_core(OpenUplink, device))
            fds.append(uplink.fd)
            config |= _uplink_config(device, uplink)
        if not isinstance(device, UplinkDevice):
            listener = Listener(device.socket, uid=device.uid, gid=device.gid, backlog=1)
            fds.insert(0, stack.enter_context(listener).fileno())
        whole = json.dumps(config | ({"shares": shares} if shares else {}))
        try:
            await self._in_core(self._core.device_add, whole, fds)
        except ValueError as error:
            raise UsageError(f"the core refuses device {device.id}: {error}") from error
        if served.hub is not None:
            served.hub.release_guest_ends()
        served.config = config

    async def _device_del(self, arguments: Mapping[str, object]) -> object:
        device_id = arguments.get("id")
        if not isinstance(device_id, str) or len(arguments) != 1:
            raise UsageError("device_del has one argument, id", hint='{"id": "<machine>/disk0"}')
        with self._claim(device_id):
            served = self._devices.get(device_id)
            if served is None:
                raise _no_device(device_id)
            await self._remove(served)
        log.info("device deleted", extra={"device": device_id})
        self._emit("DEVICE_DELETED", {"device": device_id})
        return {}

    async def _remove(self, served: _Served) -> None:
        try:
            await self._in_core(self._core.device_del, served.device.id)
        except KeyError:
            log.error("the core had lost a device", extra={"device": served.device.id})
        except OSError as error:
            raise _os_error(f"device {served.device.id} cannot be deleted", error) from error
        del self._devices[served.device.id]
        await served.stack.aclose()

    async def _set_faults(self, arguments: Mapping[str, object]) -> object:
        plan = dict(arguments)
        device_id = plan.pop("id", None)
        if not isinstance(device_id, str):
            raise UsageError("set-faults has the argument id", hint='{"id": "<machine>/disk0", ...}')
        try:
            await self._in_core(self._core.set_faults, device_id, json.dumps(plan or None))
        except KeyError as error:
            raise _no_device(device_id) from error
        except ValueError as error:
            raise UsageError(
                f"faults of {device_id}: {error}", hint='docs/plane.md, "Faults on purpose"'
            ) from error
        except OSError as error:
            raise _os_error(f"faults of {device_id} cannot be set", error) from error
        log.warning("faults on purpose", extra={"device": device_id, "faults": plan})
        self._emit("DEVICE_FAULTS", {"id": device_id, "faults": plan or None})
        return {}

    async def _set_layers(self, arguments: Mapping[str, object]) -> object:
        device_id = arguments.get("id")
        served = self._devices.get(str(device_id))
        if served is None:
            raise _no_device(str(device_id))
        if not isinstance(served.device, BlkDevice) or served.images is None:
            raise UsageError(f"device {device_id} is no disk")
        device = device_from_json(device_to_json(served.device) | {"layers": arguments.get("layers")})
        if not isinstance(device, BlkDevice) or len(arguments) != len(("id", "layers")):
            raise UsageError("set-layers has the arguments id and layers")
        with self._claim(device.id), contextlib.ExitStack() as stack:
            opening = handed_over(served.images, device, self._users_of)
            images = await self._in_core(stack.enter_context, opening)
            config = served.config | _blk_config(device, images)
            try:
                await self._in_core(self._core.set_layers, device.id, json.dumps(config), images.fds)
            except ValueError as error:
                raise UsageError(f"the core refuses the layers of {device.id}: {error}") from error
            except OSError as error:
                raise _os_error(f"the layers of {device.id} cannot be changed", error) from error
            served.stack.callback(images.close)
            served.images, served.device, served.config = images, device, config
        log.info("layers changed", extra={"device": device.id, "layers": [one.path for one in device.layers]})
        self._emit("DEVICE_LAYERS", {"id": device.id, "layers": [asdict(one) for one in device.layers]})
        return {}

    async def _query_faults(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        devices = json.loads(await self._in_core(self._core.query))["devices"]
        return [
            {key: one[key] for key in ("id", "faults", "faulted")} for one in devices if one.get("faults")
        ]

    async def _query_devices(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        state = json.loads(await self._in_core(self._core.query))
        counters = {device["id"]: device for device in state["devices"]}
        return [
            counters.get(served.device.id, {}) | served.config | {"config": device_to_json(served.device)}
            for served in self._devices.values()
        ]

    async def _query_workers(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        return json.loads(await self._in_core(self._core.query))["workers"]

    async def _query_consoles(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        return [served.hub.describe() for served in self._devices.values() if served.hub is not None]

    async def _query_status(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        status = {"status": "running", "running": True, "pid": os.getpid()}
        return status | {"devices": self.device_count, "machines": len(self.machines)}

    async def _query_version(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        return version_info(__version__)

    async def _query_commands(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        return [{"name": name} for name in self.commands]

    async def _quit(self, arguments: Mapping[str, object]) -> object:
        _no_arguments(arguments)
        self._on_quit()
        return {}

    async def _finish(self, job: Awaitable[object]) -> object:
        """Run `job` to its end even if the client hangs up: half a device is worse than an unread answer."""
        task = asyncio.ensure_future(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return await asyncio.shield(task)

    @contextlib.contextmanager
    def _claim(self, device_id: str) -> Iterator[None]:
        if device_id in self._busy:
            raise ConflictError(
                f"another command works on device {device_id}", hint="try again", id=device_id
            )
        self._busy.add(device_id)
        try:
            yield
        finally:
            self._busy.discard(device_id)

    async def _in_core(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._core_pool, call, *arguments)

    def _find(self, device_id: str) -> Device | None:
        served = self._devices.get(device_id)
        return None if served is None else served.device

    def _port_changed(self, device: NetDevice) -> None:
        served = self._devices.get(device.id)
        if served is not None:
            served.device, served.config = device, served.config | _net_config(device)

    def _users_of(self, key: ImageKey) -> list[str]:
        return [
            f"device {device_id}"
            for device_id, served in list(self._devices.items())  # at once: other threads ask too
            if served.images is not None and key in served.images.keys
        ]

    def _forward_events(self) -> None:
        for text in self._core.take_events():
            event = json.loads(text)
            if any(part.hear(event["event"], event["data"]) for part in (self._arbitration, self._host_work)):
                continue
            log.info("event of the core", extra={"event_name": event["event"], "facts": event["data"]})
            self._emit(event["event"], event["data"])


def _blk_config(device: BlkDevice, images: OpenImages) -> dict[str, object]:
    return {
        "worker": images.worker,
        "queues": device.queues,
        "queue_size": device.queue_size,
        "read_only": device.read_only,
        "serial": device.serial,
        "direct": images.direct,
        "layers": [layer_to_core(layer) for layer in device.layers],
    }


def _net_config(device: NetDevice) -> dict[str, object]:
    fields = device_to_json(device)
    taken = ("network", "mac", "mtu", "queues", "queue_size", "link", "rules")
    return {"worker": f"net-{device.network}"} | {name: fields[name] for name in taken}


def _uplink_config(device: UplinkDevice, uplink: OpenUplink) -> dict[str, object]:
    kind = "stream" if device.kind == "stream" else "tap"
    config = {"worker": f"net-{device.network}", "network": device.network, "kind": kind, "uso": uplink.uso}
    if device.port:
        config |= {"port": device.port, "addresses": list(device.addresses)}
    return config | ({"rate": device.rate} if device.rate else {})


def _no_device(device_id: str) -> NagayaError:
    return NotFoundError(f"there is no device {device_id}", hint="see query-devices", id=device_id)


def _os_error(what: str, error: OSError) -> NagayaError:
    where = f" ({error.filename})" if error.filename else ""
    return ResourceError(f"{what}: {error.strerror or error}{where}", errno=error.errno)


def _no_arguments(arguments: Mapping[str, object]) -> None:
    if arguments:
        raise UsageError(f"this command takes no arguments, not {', '.join(arguments)}")
