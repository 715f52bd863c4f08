"""Devices as JSON: the arguments of `device_add`, checked where they enter."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from nagaya.abi.tun import IFNAMSIZ
from nagaya.errors import UsageError
from nagaya.plane.config import (
    BalloonDevice,
    BlkDevice,
    ConsoleDevice,
    CopyJob,
    Device,
    Layer,
    MemDevice,
    Model,
    NetDevice,
    RngDevice,
    Speed,
    UplinkDevice,
)
from nagaya.plane.ports import rules_from_json
from nagaya.plane.shares import shares_from_json

_DRIVERS: dict[object, type[Device]] = {
    "blk": BlkDevice,
    "console": ConsoleDevice,
    "rng": RngDevice,
    "balloon": BalloonDevice,
    "mem": MemDevice,
    "net": NetDevice,
    "uplink": UplinkDevice,
}
_SCALARS: dict[object, type] = {"str": str, "int": int, "bool": bool}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}")  # no slash: it is one node of the arbiter's tree
_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its terminator
_SERIAL_BYTES = 20  # VIRTIO 1.3, 5.2.6: VIRTIO_BLK_T_GET_ID
_LAYERS = 64  # each is an open file; deeper chains are flattened first
_BOUNDS = {
    "uid": (0, 2**32 - 2),  # 2**32 - 1 means "leave it" to chown(2)
    "gid": (0, 2**32 - 2),
    "queues": (1, 64),
    "queue_size": (2, 1024),  # what QEMU allows too; bounds the memory of a queue's in-flight table
    "log_limit": (4096, 2**30),
    "rate": (0, 2**63 - 1),
    "stats_ms": (0, 24 * 3600 * 1000),
    "start": (0, 2**52),  # of addresses (SDM 4.1.4)
    "size": (0, 2**52),
    "requested": (0, 2**52),
}


def device_to_json(device: Device) -> dict[str, object]:
    """The arguments of `device_add` for `device`."""
    return asdict(device)


def device_from_json(arguments: Mapping[str, object]) -> Device:
    """The device that `arguments` describe. Raises `UsageError` naming the field, its value and the bound."""
    driver = arguments.get("driver")
    cls = _DRIVERS.get(driver) if isinstance(driver, str) else None
    if cls is None:
        raise UsageError(
            f"driver {driver!r} is unknown", hint=f"it is one of {', '.join(map(str, _DRIVERS))}"
        )
    device: Device = _build(cls, arguments)
    _check(device)
    return device


def job_to_json(job: CopyJob) -> dict[str, object]:
    """The arguments of `job-start` for `job`."""
    return asdict(job)


def job_from_json(arguments: Mapping[str, object]) -> CopyJob:
    """The job that `arguments` describe. Raises `UsageError` naming the field, its value and the bound."""
    kind = arguments.get("kind")
    if kind != "copy":
        raise UsageError(f"kind {kind!r} of a job is unknown", hint="it is copy")
    job: CopyJob = _build(CopyJob, arguments)
    if not _JOB_ID.fullmatch(job.id):
        raise UsageError(f"job id {job.id!r} does not match {_JOB_ID.pattern}")
    return job


def layer_to_core(layer: Layer) -> dict[str, object]:
    """A layer as the Rust core has it: it gets a file descriptor instead of the path."""
    return {"format": layer.format} | ({} if layer.model is None else {"model": asdict(layer.model)})


def _build(cls: Any, arguments: Mapping[str, object]) -> Any:
    known = {field.name: field for field in fields(cls)}
    for name in arguments:
        if name not in known:
            raise UsageError(f"field {name!r} is unknown", hint=f"{cls.__name__} has {', '.join(known)}")
    values: dict[str, object] = {}
    for name, field in known.items():
        if name in arguments:
            values[name] = _value(name, field.type, arguments[name])
        elif field.default is MISSING:
            raise UsageError(f"field {name!r} is missing", hint=f"{cls.__name__} needs it")
    return cls(**values)


def _value(name: str, annotation: object, value: object) -> object:
    if name in ("layers", "target", "unlike"):
        return () if name == "unlike" and not value else _layers(name, value)
    parse = _PARSERS.get(name)
    if parse is not None:
        return parse(value)
    if name == "model":
        return None if value is None else _build(Model, _object(name, value))
    if name == "speeds":
        return tuple(_build(Speed, _object(name, speed)) for speed in _list(name, value))
    scalar = _SCALARS.get(annotation, str)  # the rest are literals of text, compared in _check
    if type(value) is not scalar:  # a bool is not an int here
        raise UsageError(f"field {name!r} is {value!r}, not of type {scalar.__name__}")
    return value


def _addresses(value: object) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_address(str(one))) for one in _list("addresses", value))
    except ValueError as error:
        raise UsageError(f"field 'addresses': {error}") from error


def _list(name: str, value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"field {name!r} is {value!r}, not a list")
    return list(value)


def _layers(name: str, value: object) -> tuple[Layer, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _LAYERS:
        raise UsageError(f"field {name!r} is not a list of 1 to {_LAYERS} image files")
    for layer in value:
        if not isinstance(layer, dict):
            raise UsageError(f"layer {layer!r} is not an object", hint='write {"path": ..., "format": ...}')
    layers = tuple(_build(Layer, layer) for layer in value)
    for layer in layers:
        if layer.format not in ("raw", "qcow2", "null", "simulated"):
            raise UsageError(f"image format {layer.format!r} is unknown", hint="it is raw or qcow2")
        if layer.model is None:
            _check_path(name, layer.path)
        elif layer.path:
            raise UsageError(f"layer {layer.path!r} has a model, which is for disks without a file")
    return layers


def _object(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"field {name!r} is {value!r}, not an object")
    return value


def _check(device: Device) -> None:
    of_host = isinstance(device, UplinkDevice)  # its id begins with %, which no machine's does
    if not _ID.fullmatch(device.id.removeprefix("%") if of_host else device.id):
        raise UsageError(f"device id {device.id!r} does not match {_ID.pattern}")
    for name, (low, high) in _BOUNDS.items():
        number = getattr(device, name, low)
        if not low <= number <= high:
            raise UsageError(f"{name} of {device.id} is {number}, outside {low} to {high}")
    for name in ("socket", "console_socket", "agent_socket", "serial_socket", "log"):
        path = getattr(device, name, None)
        if path is not None and (path or name != "serial_socket"):
            _check_path(name, path, None if name == "log" else _SOCKET_PATH_BYTES)
    if isinstance(device, BlkDevice | NetDevice) and device.queue_size & (device.queue_size - 1):
        raise UsageError(f"queue_size of {device.id} is {device.queue_size}, not a power of two")
    if isinstance(device, NetDevice | UplinkDevice):
        _check_network(device)
    if isinstance(device, BlkDevice) and len(device.serial.encode()) > _SERIAL_BYTES:
        raise UsageError(f"serial {device.serial!r} of {device.id} is over {_SERIAL_BYTES} bytes")


def _check_network(device: NetDevice | UplinkDevice) -> None:
    if not _NETWORK.fullmatch(device.network):
        raise UsageError(f"network {device.network!r} of {device.id} does not match {_NETWORK.pattern}")
    if isinstance(device, NetDevice):
        return
    if device.kind not in ("tap", "macvtap", "stream"):
        raise UsageError(
            f"kind {device.kind!r} of {device.id} is unknown", hint="it is tap, macvtap or stream"
        )
    if device.port and not _ID.fullmatch(device.port):
        raise UsageError(f"port {device.port!r} of {device.id} does not match {_ID.pattern}")
    if device.kind == "stream":
        _check_path("path", device.path, _SOCKET_PATH_BYTES)
    elif not 1 <= len(device.interface.encode()) < IFNAMSIZ or "/" in device.interface:
        raise UsageError(f"interface {device.interface!r} of {device.id} is not the name of one")


def _check_path(name: str, path: str, limit: int | None = None) -> None:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{name} {path!r} is not an absolute path")
    if limit is not None and len(path.encode(errors="surrogateescape")) > limit:
        raise UsageError(f"{name} {path!r} is over {limit} bytes, the most a unix socket's address holds")


_PARSERS: dict[str, Callable[[object], object]] = {
    "addresses": _addresses,
    "rules": rules_from_json,
    "shares": shares_from_json,
}
