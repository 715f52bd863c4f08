"""A machine's PCI devices as `query-pci` shows them (QMP schema, PciInfo)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nagaya.hw.pci import BAR, PciFunction
from nagaya.kvm.machine import Machine

_CLASSES = {0x01: "Storage", 0x02: "Network", 0x06: "Bridge", 0x07: "Serial"}


def describe(machine: Machine) -> list[dict[str, Any]]:
    """All buses with what is on them; what is behind a port is in its entry too. The lock is held."""
    names = {device.function: name for name, device in machine.devices.items()}
    buses: dict[int, list[dict[str, Any]]] = {0: []}
    for bus, number, function in machine.pci.functions():
        buses.setdefault(bus, []).append(_device(bus, number, function, names.get(function, "")))
    for number, port in machine.pci.ports.items():
        entry = next(one for one in buses[0] if one["slot"] == number)
        entry["pci_bridge"] = {
            "bus": {
                "number": 0,
                "secondary": port.bus,
                "subordinate": port.bus,
                "io_range": {"base": 0, "limit": 0},
                "memory_range": {"base": 0, "limit": 0},
                "prefetchable_range": {"base": 0, "limit": 0},
            },
            "devices": buses.get(port.bus, []) if port.child is not None else [],
        }
    return [{"bus": 0, "devices": buses[0]}]


def _device(bus: int, number: int, function: PciFunction, name: str) -> dict[str, Any]:
    who = function.identity
    return {
        "bus": bus,
        "slot": number,
        "function": 0,
        "qdev_id": name,
        "class_info": {"class": who.class_code, "desc": _CLASSES.get(who.class_code >> 8, "Other")},
        "id": {
            "vendor": who.vendor,
            "device": who.device,
            "subsystem-vendor": who.subsystem_vendor,
            "subsystem": who.subsystem,
        },
        "irq_pin": 0,
        "regions": list(_regions(function)),
    }


def _regions(function: PciFunction) -> Iterable[dict[str, Any]]:
    for index, bar in function.bars.items():
        if BAR[index] in function.header.map.registers:
            yield {
                "bar": index,
                "type": "memory",
                "address": -1 if bar.base is None else bar.base,
                "size": bar.size,
                "prefetch": bar.prefetchable,
                "mem_type_64": bar.wide,
            }
