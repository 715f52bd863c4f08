"""NICs of machines of the kvm engine in a network of the plane: payloads that ping, and a hostile one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.kvm.config import DeviceConfig
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

MakeNic = Callable[..., DeviceConfig]

pytestmark = pytest.mark.kvm


@pytest.fixture
def nic(plane: _core.Plane, directory: Path) -> MakeNic:
    """Makes a NIC 52:54:00:00:00:<number> on the network `yard`."""

    def make(number: int, **fields: object) -> DeviceConfig:
        name = f"net{number}"
        path = directory / f"{name}.sock"
        config = {
            "driver": "net",
            "id": name,
            "worker": "net-yard",
            "network": "yard",
            "mac": f"52:54:00:00:00:{number:02x}",
            **fields,
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            plane.device_add(json.dumps(config), [listener.fileno()])
        return DeviceConfig(name, "net", str(path))

    return make


def answering(nic: MakeNic, number: int = 3) -> Bare:
    """A machine at 10.77.0.`number` that answers."""
    return Bare(build("net"), f"ip={number}", devices=[nic(number)])


def lost(output: str) -> int:
    """How many pings were sent again."""
    found = re.search(r"PINGED \d+ LOST (\d+)", output)
    assert found
    return int(found[1])


@pytest.mark.parametrize("options", ["size=56", "size=1400", "size=0 features=0"])
def test_two_machines_ping_each_other(nic: MakeNic, options: str) -> None:
    with (
        answering(nic) as peer,
        Bare(build("net"), f"ip=2 peer=3 pings=200 {options}", devices=[nic(2)]) as guest,
    ):
        output = guest.finish()
        assert "MAC 52:54:0:0:0:2" in output
        assert lost(output) == 0
        assert peer.ending is None


def test_a_killed_worker_costs_a_few_frames_at_most(plane: _core.Plane, nic: MakeNic) -> None:
    kills = 0
    with (
        answering(nic) as peer,
        Bare(build("net"), "ip=2 peer=3 pings=5000", devices=[nic(2)]) as guest,
    ):
        guest.said("MAC")
        while "EXIT" not in guest.output and kills < 3:
            time.sleep(0.1)
            for one in json.loads(plane.query())["workers"]:
                if one["pid"]:
                    os.kill(one["pid"], signal.SIGKILL)
                    kills += 1
        assert lost(guest.finish()) <= 2 * kills
        assert {
            one.virtio.device.cause for bare in (peer, guest) for one in bare.machine.devices.values()
        } == {""}
    assert kills >= 2


def test_paused_and_resumed_while_frames_come(nic: MakeNic) -> None:
    with (
        answering(nic) as peer,
        Bare(build("net"), "ip=2 peer=3 pings=5000", devices=[nic(2)]) as guest,
    ):
        guest.said("MAC")
        for _ in range(5):
            peer.machine.pause()
            peer.machine.devices["net3"].virtio.device.suspend()
            time.sleep(0.01)
            peer.machine.devices["net3"].virtio.device.resume()
            peer.machine.resume()
            time.sleep(0.01)
        assert lost(guest.finish()) == 0


def test_a_nic_that_is_plugged_is_there(nic: MakeNic) -> None:
    with answering(nic) as peer, Bare(build("net"), "ip=2 peer=3 pings=10", devices=[nic(2)]) as guest:
        guest.finish()
        peer.machine.plug(nic(4))
        assert peer.machine.devices["net4"].port is not None


def test_a_driver_that_breaks_the_rules_disturbs_nobody(plane: _core.Plane, nic: MakeNic) -> None:
    with answering(nic) as peer, Bare(build("net_bad"), "peer=3", devices=[nic(2)]) as guest:
        output = guest.finish()
        assert peer.ending is None
    assert output.count("STILL THERE") == 6
    assert [one["generation"] for one in json.loads(plane.query())["workers"]] == [1]
