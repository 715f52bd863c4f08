"""The plane's QMP commands about ports of networks that are there (docs/plane.md, "Networks")."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UsageError
from nagaya.plane.config import Device, NetDevice
from nagaya.plane.ports import PortRules, rules_from_json
from nagaya.qmp import Command

_SNAPLEN = 262_144  # bytes; more than the largest frame
_LIMIT = 1 << 30  # bytes
_MAGIC = 0xA1B23C4D  # pcap 2.4, times in nanoseconds
_ETHERNET = 1  # LINKTYPE_ETHERNET

log = logging.getLogger(__name__)


class Core(Protocol):
    """What is needed of `nagaya._core.Plane`."""

    def order_port(self, id: str, order: str, fds: Sequence[int]) -> str: ...  # noqa: A002
    def query_ports(self, network: str | None) -> str: ...


class PortOrders:
    """Gives ports rules and faults, and looks at their frames.

    `in_core` runs a call of the core beside the event loop, `emit` sends an event to the clients, `find` has
    the devices, `changed` is told of one that is another now, `finish` runs a command to its end whoever
    hangs up.
    """

    def __init__(
        self,
        core: Core,
        in_core: Callable[..., Awaitable[Any]],
        emit: Callable[[str, Mapping[str, object]], None],
        *,
        find: Callable[[str], Device | None],
        changed: Callable[[NetDevice], None],
        finish: Callable[[Awaitable[object]], Awaitable[object]],
    ) -> None:
        self._core = core
        self._in_core = in_core
        self._emit = emit
        self._find = find
        self._changed = changed
        self.commands: dict[str, Command] = {
            "query-flows": self._query_flows,
            "query-ports": self._query_ports,
        }
        for name, command in {
            "capture-start": self._capture_start,
            "capture-stop": self._capture_stop,
            "set-port": self._set_port,
            "set-port-faults": self._set_faults,
        }.items():
            self.commands[name] = partial(_finished, finish, command)

    async def _query_ports(self, arguments: Mapping[str, object]) -> object:
        network = arguments.get("network")
        if set(arguments) - {"network"} or not isinstance(network, str | None):
            raise UsageError("query-ports has one argument, network: a name, or null for all")
        return json.loads(await self._in_core(self._core.query_ports, network))

    async def _query_flows(self, arguments: Mapping[str, object]) -> object:
        port = _arguments("query-flows", arguments, limit=(int, 20))
        return await self._order(port["id"], {"type": "flows", "limit": port["limit"]})

    async def _set_port(self, arguments: Mapping[str, object]) -> object:
        port = _arguments("set-port", arguments, rules=(dict, None), link=(bool, None))
        device = self._find(port["id"])
        if not isinstance(device, NetDevice):
            raise _no_port(port["id"], "a machine's port")
        rules: PortRules = device.rules if port["rules"] is None else rules_from_json(port["rules"])
        link = device.link if port["link"] is None else port["link"]
        order = {"type": "set", "rules": dataclasses.asdict(rules), "link": link}
        await self._order(device.id, order)
        self._changed(dataclasses.replace(device, rules=rules, link=link))
        log.info("port changed", extra={"device": device.id, "link": link})
        return {}

    async def _set_faults(self, arguments: Mapping[str, object]) -> object:
        plan = dict(arguments)
        device_id = _id("set-port-faults", plan.pop("id", None))
        await self._order(device_id, {"type": "faults", "plan": plan or None})
        log.warning("faults on purpose", extra={"device": device_id, "faults": plan})
        self._emit("PORT_FAULTS", {"id": device_id, "faults": plan or None})
        return {}

    async def _capture_start(self, arguments: Mapping[str, object]) -> object:
        port = _arguments(
            "capture-start", arguments, path=(str, ""), snaplen=(int, _SNAPLEN), limit=(int, _LIMIT)
        )
        rows = json.loads(await self._in_core(self._core.query_ports, None))
        if any(row["id"] == port["id"] and row["captured"] for row in rows):
            raise ConflictError(
                f"port {port['id']} is captured already", hint="end that first (capture-stop)", id=port["id"]
            )
        try:
            fd = await self._in_core(_open_capture, port["path"], port["snaplen"])
        except OSError as error:
            raise ResourceError(
                f"{port['path']} cannot be written: {error.strerror}",
                hint="it must be a file, or a FIFO that somebody reads",
                errno=error.errno,
            ) from error
        try:
            order = {"type": "capture", "snaplen": port["snaplen"], "limit": port["limit"]}
            await self._order(port["id"], order, fd)
        finally:
            os.close(fd)
        log.info("port captured", extra={"device": port["id"], "path": port["path"]})
        return {}

    async def _capture_stop(self, arguments: Mapping[str, object]) -> object:
        device_id = _arguments("capture-stop", arguments)["id"]
        counts = await self._order(device_id, {"type": "capture_stop"})
        if counts is None:
            raise NotFoundError(f"port {device_id} is not captured", hint="see query-ports", id=device_id)
        return counts

    async def _order(self, device_id: str, order: Mapping[str, object], *fds: int) -> Any:
        try:
            answer = await self._in_core(self._core.order_port, device_id, json.dumps(order), fds)
        except KeyError as error:
            raise _no_port(device_id, "a port") from error
        except ValueError as error:
            raise UsageError(f"port {device_id}: {error}", hint='docs/plane.md, "Networks"') from error
        except OSError as error:
            raise ResourceError(
                f"port {device_id} cannot be changed: {error.strerror or error}", errno=error.errno
            ) from error
        return json.loads(answer)


def _finished(
    finish: Callable[[Awaitable[object]], Awaitable[object]],
    command: Callable[[Mapping[str, object]], Awaitable[object]],
    arguments: Mapping[str, object],
) -> Awaitable[object]:
    return finish(command(arguments))


def _open_capture(path: str, snaplen: int) -> int:
    """An open file, or pipe, that begins with pcap's header; writing to it blocks."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            os.ftruncate(fd, 0)
        elif not stat.S_ISFIFO(mode):
            raise OSError(0, "it is neither a file nor a FIFO")
        os.write(fd, struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, snaplen, _ETHERNET))
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _arguments(command: str, arguments: Mapping[str, object], **known: tuple[type, object]) -> dict[str, Any]:
    """The arguments with their defaults; None is only a default."""
    for name in arguments:
        if name != "id" and name not in known:
            raise UsageError(f"{command} has no argument {name!r}", hint=f"it has id, {', '.join(known)}")
    values: dict[str, Any] = {"id": _id(command, arguments.get("id"))}
    for name, (kind, default) in known.items():
        value = arguments.get(name, default)
        if name in arguments and (type(value) is not kind or value == "" or (kind is int and value < 1)):  # type: ignore[operator]
            raise UsageError(f"{name} of {command} is {value!r}", hint=f"it is of type {kind.__name__}")
        values[name] = value
    return values


def _id(command: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{command} has the argument id", hint='{"id": "<machine>/net0", ...}')
    return value


def _no_port(device_id: str, what: str) -> NotFoundError:
    return NotFoundError(f"{device_id} is not {what}", hint="see query-ports", id=device_id)
