"""Arguments of device_add become devices, or errors that name the field."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import UsageError
from nagaya.plane.config import (
    BalloonDevice,
    BlkDevice,
    ConsoleDevice,
    Layer,
    MemDevice,
    Model,
    NetDevice,
    RngDevice,
    Speed,
    UplinkDevice,
)
from nagaya.plane.ports import PortRules, SecurityRow
from nagaya.plane.shares import ShareNode
from nagaya.plane.wire import device_from_json, device_to_json

RNG: dict[str, Any] = {"driver": "rng", "id": "m/rng", "socket": "/tmp/s", "uid": 0, "gid": 0}
DISK: dict[str, Any] = RNG | {"driver": "blk", "layers": [{"path": "/tmp/i", "format": "raw"}]}
NIC: dict[str, Any] = RNG | {"driver": "net", "network": "default", "mac": "52:54:00:00:00:01"}
TAP: dict[str, Any] = {
    "driver": "uplink",
    "id": "%n/uplink",
    "network": "n",
    "kind": "tap",
    "interface": "t0",
}


def test_a_device_survives_the_way_through_json(
    console: ConsoleDevice, rng: RngDevice, make_disk: Callable[..., BlkDevice]
) -> None:
    shares = (ShareNode("@acme", weight=300), ShareNode("m", "@acme", limit_iops=5), ShareNode("m/disk0"))
    model = Model(2**20, "ssd", 4, read_us=100, speeds=(Speed(10, 50),))
    simulated = dataclasses.replace(make_disk(), layers=(Layer("", "simulated", model),))
    balloon = BalloonDevice("m/balloon0", "/tmp/s", 0, 0, stats_ms=100)
    disks = (make_disk(queues=2, serial="abc"), make_disk(shares=shares), simulated)
    mem = MemDevice("m/mem0", "/tmp/s", 0, 0, start=1 << 32, size=1 << 30, requested=2 << 20)
    for device in (console, rng, balloon, mem, *disks):
        assert device_from_json(json.loads(json.dumps(device_to_json(device)))) == device


def test_the_way_out_of_one_port_survives_the_way_through_json() -> None:
    own = UplinkDevice(
        "%m/net0", "n", "stream", path="/tmp/s", port="m/net0", addresses=("10.0.0.1", "fe80::1")
    )
    assert device_from_json(json.loads(json.dumps(device_to_json(own)))) == own


def test_a_port_survives_the_way_through_json() -> None:
    security = (SecurityRow("in", "tcp", (80, 443), "group:web"), SecurityRow("out"))
    rules = PortRules(("10.0.0.5", "fd00::5"), vlan=7, trunk=(8, 9), groups=("web",), security=security)
    net = NetDevice("m/net0", "/tmp/s", 0, 0, "default", "52:54:00:00:00:01", queues=2, rules=rules)
    for device in (net, dataclasses.replace(net, rules=PortRules()), device_from_json(TAP)):
        assert device_from_json(json.loads(json.dumps(device_to_json(device)))) == device
    assert device_from_json(NIC).id == "m/rng"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "driver None"),
        (RNG | {"driver": "nic"}, "driver 'nic'"),
        (
            RNG | {"driver": "mem", "start": 0, "size": 2**53},
            f"size of m/rng is {2**53}, outside 0 to {2**52}",
        ),
        (RNG | {"driver": "balloon", "stats_ms": -1}, "stats_ms of m/rng is -1, outside 0 to 86400000"),
        (RNG | {"driver": ["blk"]}, "driver ['blk']"),
        (RNG | {"speed": 9}, "'speed' is unknown"),
        ({name: value for name, value in RNG.items() if name != "uid"}, "'uid' is missing"),
        (RNG | {"uid": True}, "'uid' is True"),
        (RNG | {"uid": "0"}, "'uid' is '0'"),
        (RNG | {"uid": -1}, "outside 0 to"),
        (RNG | {"id": "../x y"}, "does not match"),
        (RNG | {"socket": "s"}, "not an absolute path"),
        (RNG | {"socket": "/" + "s" * 107}, "over 107 bytes"),
        (RNG | {"socket": "/a\0b"}, "not an absolute path"),
        (DISK | {"layers": []}, "list of 1 to"),
        (DISK | {"layers": [7]}, "layer 7"),
        (DISK | {"layers": [{"path": "/i", "format": "vmdk"}]}, "'vmdk' is unknown"),
        (DISK | {"layers": [{"path": "/i"}]}, "'format' is missing"),
        (DISK | {"layers": [{"path": "/i", "format": "null", "model": {"size": 512}}]}, "without a file"),
        (DISK | {"layers": [{"path": "", "format": "null"}]}, "not an absolute path"),
        (DISK | {"layers": [{"path": "", "format": "null", "model": 7}]}, "'model' is 7"),
        (
            DISK | {"layers": [{"path": "", "format": "null", "model": {"size": 1, "speeds": 7}}]},
            "'speeds' is 7",
        ),
        (DISK | {"queue_size": 100}, "power of two"),
        (DISK | {"queue_size": 65536}, "outside 2 to 1024"),
        (DISK | {"queues": 0}, "outside 1 to 64"),
        (DISK | {"serial": "s" * 21}, "over 20 bytes"),
        (DISK | {"shares": 7}, "list of at most"),
        (DISK | {"shares": [7]}, "share 7"),
        (DISK | {"shares": [{"weight": 7}]}, "id None"),
        (DISK | {"shares": [{"id": "a b"}]}, "'a b'"),
        (DISK | {"shares": [{"id": "m", "parent": 7}]}, "parent 7"),
        (DISK | {"shares": [{"id": "m", "speed": 7}]}, "'speed' of a share is unknown"),
        (DISK | {"shares": [{"id": "m", "weight": 0}]}, "weight of share m is 0"),
        (DISK | {"shares": [{"id": "m", "weight": True}]}, "weight of share m is True"),
        (DISK | {"shares": [{"id": "m", "limit": 0}]}, "limit of share m is 0"),
        (DISK | {"shares": [{"id": "m", "reservation": None}]}, "reservation of share m is None"),
        (NIC | {"network": "a/b"}, "network 'a/b'"),
        (NIC | {"queue_size": 100}, "power of two"),
        (NIC | {"rules": 7}, "rules is 7"),
        (NIC | {"rules": {"colour": 7}}, "'colour' of rules is unknown"),
        (NIC | {"rules": {"trunk": 7}}, "'trunk' is 7"),
        (NIC | {"rules": {"security": [{"peer": "any"}]}}, "no direction"),
        (NIC | {"id": "%m/net0"}, "device id '%m/net0'"),
        (TAP | {"kind": "bridge"}, "kind 'bridge'"),
        (TAP | {"interface": "x" * 16}, "is not the name of one"),
        (TAP | {"interface": ""}, "is not the name of one"),
        (TAP | {"kind": "stream", "path": "passt.sock"}, "not an absolute path"),
        (TAP | {"port": "%m"}, "port '%m'"),
        (TAP | {"addresses": "10.0.0.1"}, "not a list"),
        (TAP | {"addresses": ["10.0.0"]}, "'10.0.0' does not appear to be"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        device_from_json(arguments)
    assert words in caught.value.message


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.sampled_from(sorted(DISK)), JSON)
def test_no_value_does_more_than_raise_a_usage_error(name: str, value: object) -> None:
    with contextlib.suppress(UsageError):
        device_from_json(DISK | {name: value})
