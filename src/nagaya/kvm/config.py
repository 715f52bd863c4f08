"""What a machine process of the kvm engine is given: one message, JSON, checked where it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Transport = Literal["pci", "mmio"]
DeviceKind = Literal["blk", "console", "rng", "balloon", "mem", "net"]


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A vhost-user device: the machine connects to `socket`, where the plane listens."""

    id: str  # "disk0"; the QMP id
    kind: DeviceKind
    socket: str  # path inside the jail
    queues: int = 1  # of requests (blk) or pairs (net)
    queue_size: int = 256


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One machine. Paths are as the process sees them, inside its jail; "" means none."""

    name: str
    uuid: str
    memory: int  # bytes, a multiple of 4 KiB
    cpus: int = 1
    cpu_model: str = "host"  # a name of nagaya.kvm.models
    kernel: str = ""  # ELF vmlinux or bzImage, uncompressed payload
    initrd: str = ""
    cmdline: str = ""
    devices: tuple[DeviceConfig, ...] = ()
    transport: Transport = "pci"
    huge_pages: bool = False
    numa_node: int | None = None
    hot_memory: int = 0  # bytes that the guest may plug behind it, at `layout.hot_start(memory)`
    serial: str = ""  # unix stream socket that carries the first serial port; "": standard output
    qmp: str = ""  # unix socket on which the monitor listens
    reboot: Literal["reset", "exit"] = "exit"  # what a guest's reset does

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MachineConfig:
        """What `to_json` wrote. Raises `TypeError` or `ValueError` if it is not one."""
        fields = dict(body)
        devices = tuple(DeviceConfig(**one) for one in fields.pop("devices", ()))
        return cls(devices=devices, **fields)
