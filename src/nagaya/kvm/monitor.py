"""The monitor: a machine's QMP commands and events, with the names and shapes of QEMU's (interop/qmp-spec).

Commands run in the machine's main thread. What QEMU says of a command holds here; what it offers besides is
not there, and an argument that has no meaning here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nagaya import __version__
from nagaya.errors import ConflictError, NotFoundError, UsageError
from nagaya.kvm.config import DeviceConfig, DeviceKind
from nagaya.qmp import Command, QmpServer, version_info

T = TypeVar("T")

_KINDS: Mapping[str, DeviceKind] = {
    "vhost-user-blk-pci": "blk",
    "virtio-net-pci": "net",
}
_QUEUES_MAX = 64  # of one device: each takes two eventfds and an interrupt's route


@dataclass(frozen=True, slots=True)
class VcpuInfo:
    """A virtual CPU: its number and the thread that runs it."""

    index: int
    thread_id: int


class Controlled(Protocol):
    """What the monitor does with a machine; each method returns when it is done."""

    name: str
    uuid: str

    @property
    def status(self) -> str:
        """RunState of the QMP schema: running, paused, shutdown, guest-panicked, internal-error."""

    def pause(self) -> bool:
        """Stop all vCPUs. False if they stood still already."""

    def resume(self) -> bool:
        """Let them run. False if they did."""

    def power_down(self) -> None:
        """Press the power button."""

    def reset(self) -> None:
        """Start the guest anew, or end with `Reason.RESET` (`MachineConfig.reboot`)."""

    def quit(self) -> None:
        """End."""

    def vcpus(self) -> Sequence[VcpuInfo]:
        """All of them."""

    def pci(self) -> list[dict[str, object]]:
        """Elements of PciInfo (QMP schema)."""

    def plug(self, device: DeviceConfig) -> None:
        """Add a device while the guest runs."""

    def unplug(self, device_id: str) -> None:
        """Ask the guest to let go of a device; DEVICE_DELETED tells when it has."""


class Monitor:
    """Serves one machine's commands on `server`."""

    def __init__(self, machine: Controlled, server: QmpServer) -> None:
        self._machine = machine
        self._emit = server.emit
        self._chardevs: dict[str, str] = {}  # id to path of a unix socket
        self._netdevs: dict[str, tuple[str, int]] = {}  # id to chardev and queue pairs
        server.commands.update(self._commands())
        names = [{"name": name} for name in sorted((*server.commands, "qmp_capabilities", "query-commands"))]
        server.commands["query-commands"] = _plain(lambda: names)

    def _commands(self) -> dict[str, Command]:
        machine = self._machine
        return {
            "query-status": _plain(self._query_status),
            "query-name": _plain(lambda: {"name": machine.name}),
            "query-uuid": _plain(lambda: {"UUID": machine.uuid}),
            "query-version": _plain(lambda: version_info(__version__)),
            "query-kvm": _plain(lambda: {"enabled": True, "present": True}),
            "query-cpus-fast": _plain(self._query_cpus_fast),
            "query-pci": _plain(machine.pci),
            "query-chardev": _plain(self._query_chardev),
            "stop": _plain(self._stop),
            "cont": _plain(self._cont),
            "quit": _plain(machine.quit),
            "system_powerdown": _plain(self._power_down),
            "system_reset": _plain(machine.reset),
            "chardev-add": self._chardev_add,
            "chardev-remove": self._chardev_remove,
            "netdev_add": self._netdev_add,
            "netdev_del": self._netdev_del,
            "device_add": self._device_add,
            "device_del": self._device_del,
        }

    # Looking

    def _query_status(self) -> object:
        status = self._machine.status
        return {"status": status, "running": status == "running", "singlestep": False}

    def _query_cpus_fast(self) -> object:
        return [
            {
                "cpu-index": vcpu.index,
                "qom-path": f"/machine/unattached/device[{vcpu.index}]",
                "thread-id": vcpu.thread_id,
                "target": "x86_64",
                "props": {"socket-id": 0, "core-id": vcpu.index, "thread-id": 0},
            }
            for vcpu in self._machine.vcpus()
        ]

    def _query_chardev(self) -> object:
        return [
            {"label": name, "filename": f"unix:{path}", "frontend-open": True}
            for name, path in self._chardevs.items()
        ]

    # Running

    def _stop(self) -> None:
        if self._machine.pause():
            self._emit("STOP", {})

    def _cont(self) -> None:
        if self._machine.resume():
            self._emit("RESUME", {})

    def _power_down(self) -> None:
        self._machine.power_down()
        self._emit("POWERDOWN", {})

    # Devices

    async def _chardev_add(self, arguments: Mapping[str, object]) -> object:
        taken = _Arguments("chardev-add", arguments)
        name, backend = taken.text("id"), _Arguments("chardev-add backend", taken.members("backend"))
        taken.end()
        kind, socket = backend.text("type"), _Arguments("chardev-add data", backend.members("data"))
        backend.end()
        address = _Arguments("chardev-add addr", socket.members("addr"))
        if kind != "socket" or socket.flag("server", False):
            raise UsageError("a chardev here is a socket that the machine connects to (server: false)")
        address_kind = address.text("type")
        path = _Arguments("chardev-add addr data", address.members("data")).text("path")
        socket.end()
        address.end()
        if address_kind != "unix":
            raise UsageError(f"a socket of type {address_kind!r} is out of a machine's reach; it is unix")
        if name in self._chardevs:
            raise ConflictError(f"chardev {name!r} exists")
        self._chardevs[name] = path
        return {}

    async def _chardev_remove(self, arguments: Mapping[str, object]) -> object:
        name = _only(arguments, "chardev-remove", "id")
        if self._chardevs.pop(name, None) is None:
            raise NotFoundError(f"chardev {name!r} not found")
        return {}

    async def _netdev_add(self, arguments: Mapping[str, object]) -> object:
        taken = _Arguments("netdev_add", arguments)
        kind, name, chardev = taken.text("type"), taken.text("id"), taken.text("chardev")
        queues = taken.number("queues", 1)
        taken.end()
        if kind != "vhost-user":
            raise UsageError(f"a netdev of type {kind!r} is unknown; it is vhost-user")
        if name in self._netdevs:
            raise ConflictError(f"netdev {name!r} exists")
        self._socket_of(chardev)
        self._netdevs[name] = (chardev, queues)
        return {}

    async def _netdev_del(self, arguments: Mapping[str, object]) -> object:
        name = _only(arguments, "netdev_del", "id")
        if self._netdevs.pop(name, None) is None:
            raise NotFoundError(f"netdev {name!r} not found")
        return {}

    async def _device_add(self, arguments: Mapping[str, object]) -> object:
        taken = _Arguments("device_add", arguments)
        driver, name = taken.text("driver"), taken.text("id")
        kind = _KINDS.get(driver)
        if kind is None:
            raise UsageError(f"{driver!r} is not a valid device model name; there are {', '.join(_KINDS)}")
        if kind == "net":
            netdev = taken.text("netdev")
            if netdev not in self._netdevs:
                raise NotFoundError(f"netdev {netdev!r} not found")
            chardev, queues = self._netdevs[netdev]
        else:
            chardev, queues = taken.text("chardev"), taken.number("num-queues", 1)
        size = taken.number("queue-size", 256, 1024)
        taken.end()
        if size & (size - 1):
            raise UsageError(f"queue-size of {name!r} is {size}, not a power of two")
        self._machine.plug(DeviceConfig(name, kind, self._socket_of(chardev), queues, size))
        return {}

    async def _device_del(self, arguments: Mapping[str, object]) -> object:
        self._machine.unplug(_only(arguments, "device_del", "id"))
        return {}

    def _socket_of(self, chardev: str) -> str:
        if chardev not in self._chardevs:
            raise NotFoundError(f"chardev {chardev!r} not found", hint="add it first (chardev-add)")
        return self._chardevs[chardev]


class _Arguments:
    """The members of an object, taken one by one; what is left at the end is refused."""

    def __init__(self, what: str, members: Mapping[str, object]) -> None:
        self._what = what
        self._left = dict(members)

    def text(self, name: str) -> str:
        return self._take(name, str)

    def members(self, name: str) -> dict[str, object]:
        return self._take(name, dict)

    def flag(self, name: str, default: bool) -> bool:
        return self._take(name, bool) if name in self._left else default

    def number(self, name: str, default: int, most: int = _QUEUES_MAX) -> int:
        number = self._take(name, int) if name in self._left else default
        if not 1 <= number <= most:
            raise UsageError(f"{self._what}: {name} is {number}, outside 1 to {most}")
        return number

    def end(self) -> None:
        if self._left:
            raise UsageError(f"{self._what}: parameter {next(iter(self._left))!r} is unexpected")

    def _take(self, name: str, kind: type[T]) -> T:
        if name not in self._left:
            raise UsageError(f"{self._what}: parameter {name!r} is missing")
        value = self._left.pop(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UsageError(f"{self._what}: parameter {name!r} is {value!r}, not of type {kind.__name__}")
        return value


def _only(arguments: Mapping[str, object], what: str, name: str) -> str:
    taken = _Arguments(what, arguments)
    value = taken.text(name)
    taken.end()
    return value


def _plain(act: Callable[[], object]) -> Command:
    """A command without arguments."""

    async def command(arguments: Mapping[str, object]) -> object:
        _Arguments("this command", arguments).end()
        answer = act()
        return {} if answer is None else answer

    return command
