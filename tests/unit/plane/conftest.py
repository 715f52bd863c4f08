"""A core without Rust: what the Python half asks of `nagaya._core.Plane`, kept in lists."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nagaya.plane.config import BlkDevice, ConsoleDevice, Layer, RngDevice

FLOW: dict[str, Any] = {
    "protocol": "tcp",
    "direction": "in",
    "state": "open",
    "local": "10.77.0.5",
    "local_port": 80,
    "remote": "10.77.0.6",
    "remote_port": 50000,
    "vlan": 0,
    "tx_packets": 1,
    "tx_bytes": 60,
    "rx_packets": 2,
    "rx_bytes": 120,
    "age_ms": 10,
    "idle_ms": 1,
}


class FakeCore:
    """Holds duplicates of the fds of each device, as the real one does."""

    def __init__(self) -> None:
        self.devices: dict[str, tuple[dict[str, Any], list[int]]] = {}
        self.events: list[str] = []
        self.shares: list[dict[str, Any]] = []
        self.network_shares: list[dict[str, Any]] = []
        self.orders: list[tuple[str, dict[str, Any]]] = []
        self.fails: Exception | None = None
        self.short_jobs = False  # they have ended before their start returns
        self.closed = False
        self._event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def device_add(self, config: str, fds: Sequence[int]) -> None:
        if self.fails is not None:
            raise self.fails
        parsed = json.loads(config)
        self.devices[parsed["id"]] = (parsed, [os.dup(fd) for fd in fds])

    def device_del(self, id: str) -> None:  # noqa: A002
        _, fds = self.devices.pop(id)
        for fd in fds:
            os.close(fd)

    def set_faults(self, id: str, faults: str) -> None:  # noqa: A002
        if id not in self.devices:
            raise KeyError(id)
        plan = json.loads(faults)
        if plan and plan.get("error_rate", 0) > 1:
            raise ValueError("error_rate is too much")
        self.devices[id][0]["faults"] = plan

    def set_layers(self, id: str, config: str, fds: Sequence[int]) -> None:  # noqa: A002
        if self.fails is not None:
            raise self.fails
        self.device_del(id)
        self.device_add(config, fds)

    def job_start(self, config: str, fds: Sequence[int]) -> None:
        if self.fails is not None:
            raise self.fails
        parsed = json.loads(config)
        self.devices[parsed["id"]] = (parsed, [os.dup(fd) for fd in fds])
        if self.short_jobs:
            self.happen("JOB_ENDED", id=parsed["id"], errno=0)
            time.sleep(0.05)  # whoever hears of it has done so

    def job_end(self, id: str) -> None:  # noqa: A002
        self.device_del(id)

    def set_shares(self, nodes: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.shares += json.loads(nodes)

    def set_network_shares(self, nodes: str) -> None:
        self.network_shares += json.loads(nodes)

    def query_demand(self, anew: bool) -> str:
        patterns = [] if anew else [{"id": "m1/disk0"}]
        return json.dumps([{"worker": "disk-8:0", "cells": [], "patterns": patterns}])

    def query_arbiter(self) -> str:
        return json.dumps([{"worker": "disk-8:0", "window": 16, "nodes": []}])

    def query(self) -> str:
        counters = {"connected": True, "reads": 7, "violations": {}, "copied": 4096, "to_copy": 8192}
        devices = [{"id": id_} | counters for id_ in self.devices]
        workers = [{"name": "chars", "pid": 12, "generation": 1, "devices": list(self.devices)}]
        return json.dumps({"devices": devices, "workers": workers})

    def order_port(self, id: str, order: str, fds: Sequence[int]) -> str:  # noqa: A002
        if id not in self.devices:
            raise KeyError(id)
        config, open_fds = self.devices[id]
        parsed = json.loads(order)
        if (parsed.get("plan") or {}).get("loss", 0) > 1:
            raise ValueError("loss is too much")
        self.orders.append((id, parsed))
        if parsed["type"] == "capture":
            config["captured"] = True
            open_fds += [os.dup(fd) for fd in fds]
        was_captured = config.get("captured", False)
        if parsed["type"] == "capture_stop":
            config["captured"] = False
        answers = {"flows": [FLOW], "capture_stop": {"packets": 7, "missed": 1} if was_captured else None}
        return json.dumps(answers.get(parsed["type"]))

    def query_ports(self, network: str | None) -> str:
        ports = [parsed for parsed, _ in self.devices.values() if parsed.get("network")]
        counters = {"connected": True, "rx_packets": 1, "rx_bytes": 60, "tx_packets": 2, "tx_bytes": 120}
        return json.dumps(
            [
                {"id": one["id"], "network": one["network"], "mac": one.get("mac"), "link": True, "fdb": 1}
                | counters
                | {"drops": {"mac-spoof": 3}, "captured": one.get("captured", False)}
                for one in ports
                if network in (None, one["network"])
            ]
        )

    def set_balloon(self, id: str, wish: str) -> None:  # noqa: A002
        if id not in self.devices:
            raise KeyError(id)
        parsed = json.loads(wish)
        if parsed.get("size", 0) > 2**44:
            raise ValueError("size is too much")
        self.devices[id][0].update(parsed)

    def query_balloons(self) -> str:
        counts = dict.fromkeys(("actual", "reported", "inflated", "deflated", "taken_back"), 4096)
        said = {"driver": True, "stats": {"free": 7}, "stats_at": 12}
        balloons = [one for one, _ in self.devices.values() if one["driver"] == "balloon"]
        rows = [
            {"id": one["id"], "size": one.get("size", 0), "stats_ms": one["stats_ms"]} for one in balloons
        ]
        return json.dumps([row | counts | said for row in rows])

    def set_memory(self, id: str, requested: int) -> None:  # noqa: A002
        config, _ = self.devices[id]
        if requested > config["size"]:
            raise ValueError("requested is too much")
        config["requested"] = requested

    def query_memory(self) -> str:
        mems = [one for one, _ in self.devices.values() if one["driver"] == "mem"]
        said = {"block": 2 << 20, "plugged": 0, "connected": True}
        return json.dumps(
            [said | {name: one[name] for name in ("id", "start", "size", "requested")} for one in mems]
        )

    def event_fd(self) -> int:
        return self._event_fd

    def take_events(self) -> list[str]:
        os.eventfd_read(self._event_fd)
        events, self.events = self.events, []
        return events

    def happen(self, event: str, **facts: object) -> None:
        """Report an event as the Rust half would."""
        self.events.append(json.dumps({"event": event, "data": facts}))
        os.eventfd_write(self._event_fd, 1)

    def close(self) -> None:
        for id_ in list(self.devices):
            self.device_del(id_)
        os.close(self._event_fd)
        self.closed = True


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def console(directory: Path) -> ConsoleDevice:
    return ConsoleDevice(
        id="m1/console",
        socket=str(directory / "vu.sock"),
        uid=os.getuid(),
        gid=os.getgid(),
        console_socket=str(directory / "console.sock"),
        agent_socket=str(directory / "agent.sock"),
        log=str(directory / "console.log"),
        log_limit=65536,
    )


@pytest.fixture
def rng(directory: Path) -> RngDevice:
    return RngDevice(id="m1/rng", socket=str(directory / "rng.sock"), uid=os.getuid(), gid=os.getgid())


@pytest.fixture
def make_disk(directory: Path) -> Callable[..., BlkDevice]:
    """Makes raw images of 1 MiB and the device over them: `make_disk("m1/disk0", ["top", "base"])`."""

    def make(
        device_id: str = "m1/disk0", images: Sequence[str] = ("top", "base"), **fields: Any
    ) -> BlkDevice:
        for image in images:
            path = directory / image
            if not path.exists():
                path.write_bytes(bytes(2**20))
        layers = tuple(Layer(str(directory / image), "raw") for image in images)
        socket = str(directory / f"{device_id.replace('/', '-')}.sock")
        return BlkDevice(device_id, socket, os.getuid(), os.getgid(), layers, **fields)

    return make
