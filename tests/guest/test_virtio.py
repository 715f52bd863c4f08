"""Virtio devices of the plane, driven by payloads: every byte is checked by the guest."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.errors import ConflictError, ResourceError, UnavailableError
from nagaya.hw import layout
from nagaya.kvm import frontend
from nagaya.kvm.config import DeviceConfig
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

MakeDisk = Callable[..., DeviceConfig]

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    "options",
    [
        "depth=1",
        "depth=16",
        "depth=64 irq=0",
        "depth=16 features=0",
        "depth=16 features=0 irq=0",
        "depth=4 size=65536",
        "depth=8 size=512",
    ],
)
def test_every_byte_comes_back(disk: MakeDisk, options: str) -> None:
    with Bare(build("blk"), options, devices=[disk(size=1 << 20)]) as guest:
        guest.finish()


def test_several_queues(plane: _core.Plane, disk: MakeDisk) -> None:
    with Bare(build("blk"), "queues=4 depth=8 rounds=2", devices=[disk(queues=4)]) as guest:
        assert "4 queues" in guest.finish()
    (status,) = json.loads(plane.query())["devices"]
    assert status["writes"] == status["reads"] == 2 * (4 << 20) // 4096
    assert status["errors"] == 0 and status["violations"] == {}


def test_two_disks_are_two(disk: MakeDisk, directory: Path) -> None:
    with Bare(build("blk"), devices=[disk("disk0"), disk("disk1")]) as guest:
        guest.finish()
    assert any((directory / "disk0.raw").read_bytes())
    assert not any((directory / "disk1.raw").read_bytes())


def test_paused_and_resumed_in_mid_io(disk: MakeDisk) -> None:
    with Bare(build("blk"), "depth=16 rounds=20 queues=2", devices=[disk(queues=2)]) as guest:
        guest.said("DISK")
        for _ in range(20):
            guest.machine.pause()
            before = guest.output
            time.sleep(0.005)
            assert guest.output == before
            guest.machine.resume()
            time.sleep(0.005)
        guest.finish()


def test_devices_suspended_and_resumed_in_mid_io(disk: MakeDisk) -> None:
    with Bare(build("blk"), "depth=16 rounds=20 queues=2", devices=[disk(queues=2)]) as guest:
        guest.said("DISK")
        device = guest.machine.devices["disk0"].virtio.device
        for _ in range(10):
            guest.machine.pause()
            device.suspend()
            ram = bytes(guest.machine.memory.view(0, 8 << 20))
            time.sleep(0.01)
            assert guest.machine.memory.view(0, 8 << 20) == ram
            device.resume()
            guest.machine.resume()
            time.sleep(0.005)
        guest.finish()
        assert device.cause == ""


def test_a_killed_worker_is_not_noticed(plane: _core.Plane, disk: MakeDisk) -> None:
    kills = 0
    with Bare(build("blk"), "depth=16 rounds=10 queues=2", devices=[disk(queues=2)]) as guest:
        guest.said("ROUND 1\n")
        while "EXIT" not in guest.output:
            for one in json.loads(plane.query())["workers"]:
                if one["pid"]:  # else the holder is just starting another
                    os.kill(one["pid"], signal.SIGKILL)
                    kills += 1
            time.sleep(0.1)
        guest.finish()
        assert guest.machine.devices["disk0"].virtio.device.cause == ""
    assert kills >= 2


def test_a_reset_leaves_memory_alone(disk: MakeDisk) -> None:
    with Bare(build("virtio_reset"), devices=[disk()]) as guest:
        guest.finish()


def test_a_driver_that_breaks_the_rules(disk: MakeDisk) -> None:
    with Bare(build("virtio_bad"), devices=[disk()]) as guest:
        output = guest.finish()
    assert output.count("REFUSED a size") == 6
    assert output.count("REFUSED an address") == 15


def test_masked_vectors_are_pending(disk: MakeDisk) -> None:
    with Bare(build("msix_mask"), devices=[disk()]) as guest:
        guest.finish()


def test_a_lost_plane_needs_a_reset_and_hurts_no_more(plane: _core.Plane, disk: MakeDisk) -> None:
    with Bare(build("virtio_lost"), devices=[disk()]) as guest:
        guest.said("RUNNING")
        device = guest.machine.devices["disk0"]
        plane.close()
        guest.machine.attend(device)
        assert device.virtio.device.cause == "disk0: the plane has hung up"
        guest.said("STILL")
        assert "does not serve" in device.virtio.device.cause
        guest.finish()


def test_a_plane_that_comes_back_serves_after_a_reset(
    plane: _core.Plane, make_plane: Callable[[], _core.Plane], make_disk: Callable[..., DeviceConfig]
) -> None:
    with Bare(build("virtio_lost"), "back=1", devices=[make_disk(plane)]) as guest:
        guest.said("RUNNING")
        device = guest.machine.devices["disk0"]
        plane.close()
        make_disk(make_plane())
        guest.machine.attend(device)
        guest.finish()
        assert device.virtio.device.cause == ""


def test_a_plane_that_does_not_answer_is_an_error_in_time(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend, "TIMEOUT_S", 0.2)
    path = directory / "mute.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(UnavailableError, match=r"mute0.*GET_FEATURES"):
            Bare(build("hello"), devices=[DeviceConfig("mute0", "blk", str(path))])
    with pytest.raises(UnavailableError, match="does not serve"):
        Bare(build("hello"), devices=[DeviceConfig("mute0", "blk", str(path))])


def test_disks_without_pci(plane: _core.Plane, disk: MakeDisk) -> None:
    for slot, line in ((0, 5), (1, 6)):
        words = f"base={layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_STRIDE} line={line}"
        disks = [disk(f"d{slot}{number}") for number in range(2)]
        with Bare(build("virtio_mmio"), words, devices=disks, transport="mmio") as bare:
            bare.finish()
            with pytest.raises(ConflictError, match="no PCI"):
                bare.machine.plug(replace(disks[0], id="another"))
            assert bare.machine.devices[disks[slot].id].virtio.device.cause == ""
    counts = {one["id"]: (one["reads"], one["writes"]) for one in json.loads(plane.query())["devices"]}
    assert counts == {"d00": (50, 50), "d01": (0, 0), "d10": (0, 0), "d11": (50, 50)}


def test_too_many_devices_without_pci() -> None:
    several = [DeviceConfig(f"disk{number}", "blk", "/nonexistent") for number in range(18)]
    with pytest.raises(ResourceError, match="17 virtio-mmio devices are the most"):
        Bare(build("hello"), devices=several, transport="mmio")


def test_entropy(plane: _core.Plane, directory: Path) -> None:
    path = directory / "rng.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        plane.device_add(json.dumps({"driver": "rng", "id": "rng", "worker": "rng"}), [listener.fileno()])
    with Bare(build("rng"), devices=[DeviceConfig("rng", "rng", str(path))]) as guest:
        first = guest.finish()
    with Bare(build("rng"), devices=[DeviceConfig("rng", "rng", str(path))]) as guest:
        assert guest.finish() != first


def test_a_balloon_gives_memory_to_the_host_and_has_it_again(plane: _core.Plane, directory: Path) -> None:
    path, mib = directory / "balloon.sock", 1 << 20
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        config = {"driver": "balloon", "id": "balloon0", "worker": "balloons"}
        plane.device_add(json.dumps(config), [listener.fileno()])
    with Bare(build("balloon"), devices=[DeviceConfig("balloon0", "balloon", str(path))]) as guest:
        device, fd = guest.machine.devices["balloon0"], guest.machine.memory.fd

        def held() -> int:
            return os.fstat(fd).st_blocks * 512

        def row() -> dict[str, int]:
            balloon: dict[str, int] = json.loads(plane.query_balloons())[0]
            return balloon

        def ask(size: int, answer: str) -> None:
            plane.set_balloon("balloon0", json.dumps({"size": size}))
            end = time.monotonic() + 20
            while answer not in guest.output:
                assert time.monotonic() < end, guest.output
                if select.select([device.backend.fd], [], [], 0.05)[0]:
                    guest.machine.attend(device)

        guest.said("FILLED\n")
        full = held()
        ask(9 * mib, "GIVEN 2304\n")
        assert held() <= full - 9 * mib
        assert (row()["actual"], row()["inflated"], row()["driver"]) == (9 * mib, 9 * mib, True)
        ask(0, "TAKEN BACK\n")
        assert held() >= full
        assert (row()["actual"], row()["deflated"], row()["taken_back"]) == (0, 9 * mib, 0)
        ask(4096, "REPORTED\n")
        assert held() <= full - 9 * mib
        assert row()["reported"] == 9 * mib
        ask(0, "EXIT 0")
        guest.finish()
        assert device.virtio.device.cause == ""


def test_a_console(plane: _core.Plane, directory: Path) -> None:
    path = directory / "console.sock"
    host, port = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = {
        "driver": "console",
        "id": "console",
        "worker": "console",
        "ports": [{"name": "", "console": True}],
    }
    with socket.socket(socket.AF_UNIX) as listener, port:
        listener.bind(str(path))
        listener.listen()
        plane.device_add(json.dumps(config), [listener.fileno(), port.fileno()])
    host.settimeout(20)
    with host, Bare(build("console"), devices=[DeviceConfig("console", "console", str(path))]) as guest:
        assert host.recv(100) == bytes(8) + b"READY\n"
        sent, had = 0, len(b"READY\n")
        for word in (b"hello", b"row house", b"x" * 4096):
            host.send(sent.to_bytes(8, "little") + word)
            sent += len(word)
            answer = b""
            while len(answer) < len(word):
                packet = host.recv(8192)
                assert int.from_bytes(packet[:8], "little") == had
                answer += packet[8:]
                had += len(packet) - 8
            assert answer == word.upper()
        host.send(sent.to_bytes(8, "little") + b"bye")
        guest.finish()
