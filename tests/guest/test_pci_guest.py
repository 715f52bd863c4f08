"""PCI as a guest finds and drives it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya.abi import pci
from nagaya.hw.pci import Bar, Identity, PciFunction
from nagaya.hw.root_port import RootPort
from nagaya.hw.wires import Interrupts
from nagaya.kvm.config import DeviceConfig
from nagaya.kvm.machine import SPARE_SLOTS, Machine
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

MakeDisk = Callable[..., DeviceConfig]

HERE = Path(__file__).parent
pytestmark = pytest.mark.kvm


class Bell:
    """Interrupts by vector n when n is written to its BAR."""

    def __init__(self, interrupts: Interrupts) -> None:
        self.function = PciFunction(
            Identity(0x1AF4, 0x10FF, pci.PCI_CLASS_OTHERS << 8),
            bars={0: Bar(0x4000, self)},
            interrupts=interrupts,
            msix_vectors=3,
        )

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(b"bell", "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if self.function.msix is not None and value < 3:
            self.function.msix.signal(value)


def _said(board: Bare, text: str, times: int) -> None:
    board.wait(lambda: board.output.count(text) == times)


def _add_port(machine: Machine, ejected: list[PciFunction]) -> RootPort:
    """A port behind the machine's own, for devices that it does not know."""
    port = RootPort(machine.interrupts, 9, ejected.append)
    machine.pci.add_port(port)
    machine.pci.power_on()
    return port


def test_a_guest_walks_the_buses_and_is_interrupted() -> None:
    board = Bare(build(HERE / "pci_walk.c"))
    host = board.machine.pci
    ports = len(host.ports)
    host.add(Bell(board.machine.interrupts).function)
    next(iter(host.ports.values())).plug(Bell(board.machine.interrupts).function)
    host.power_on()
    with board:
        output = board.finish()
        there = list(host.functions())
    found = re.findall(r"FOUND (\w+):(\w+) (\w+):(\w+)(.*)", output)
    assert {tuple(int(part, 16) for part in one[:4]) for one in found} == {
        (bus, number, function.identity.vendor, function.identity.device) for bus, number, function in there
    }
    assert len(found) == len(there) == 3 + ports
    for _bus, _number, vendor, device, rest in found:
        bars = dict(re.findall(r"bar(\d)=\w+\+(\w+)", rest))
        capabilities = re.findall(r"cap(\w+)", rest)
        if (vendor, device) == ("1af4", "10ff"):
            assert (bars, capabilities) == ({"0": "4000", "1": "1000"}, ["10", "11"])
        elif (vendor, device) == ("1b36", "c"):
            assert (bars, capabilities) == ({"0": "1000"}, ["10", "11"])
        else:
            assert (bars, capabilities) == ({}, ["10"])


def test_devices_come_and_go_while_the_guest_runs() -> None:
    board = Bare(build(HERE / "pci_hotplug.c"), f"devices=3 port={SPARE_SLOTS}")
    machine = board.machine
    ejected: list[PciFunction] = []
    port = _add_port(machine, ejected)
    with board:
        for count in range(1, 4):
            _said(board, "LISTENING", count)
            function = Bell(machine.interrupts).function
            with machine.lock:
                port.plug(function)
            _said(board, "\nPLUGGED", count)
            with machine.lock:
                port.request_unplug()
            _said(board, "UNPLUGGED", count)
            assert port.child is None
            assert ejected == [function]
            ejected.clear()
            function.close()
        board.finish()


def test_a_disk_is_plugged_used_and_unplugged(disk: MakeDisk, directory: Path) -> None:
    """By what device_add and device_del do. The second disk has the slot and the interrupts of the first."""
    configs = [disk("disk0", size=1 << 16), disk("disk1", size=1 << 16)]
    with Bare(build(HERE / "disk_hotplug.c"), "disks=2") as board:
        for count, config in enumerate(configs, 1):
            _said(board, "LISTENING", count)
            board.machine.plug(config)
            _said(board, "\nPLUGGED", count)
            board.machine.unplug(config.id)
            _said(board, "UNPLUGGED", count)
            assert board.ejected_ids == [one.id for one in configs[:count]]
            board.machine.remove(config.id)
            assert any((directory / f"{config.id}.raw").read_bytes())
        board.finish()


@pytest.mark.parametrize("seed", (1, 2))
def test_a_guest_that_fuzzes_its_hardware_ends_as_it_meant_to(disk: MakeDisk, seed: int) -> None:
    """With a real disk and its doorbells among the victims, and a device that comes and goes meanwhile."""
    configs = [disk("disk0"), disk("disk1")]
    command = f"seed={seed} rounds=6000"
    board = Bare(build(HERE / "hardware_fuzz.c"), command, devices=configs[:1])
    machine = board.machine
    port = _add_port(machine, [])
    with board:
        while "EXIT" not in board.output and board.ending is None:
            function = Bell(machine.interrupts).function
            with machine.lock:
                port.plug(function)
            machine.pause()
            machine.resume()
            with machine.lock:
                port.eject()
            function.close()
        board.finish()


def test_a_disk_taken_away_in_mid_io_harms_only_its_driver(disk: MakeDisk) -> None:
    board = Bare(build("blk"), "depth=16 rounds=1000", devices=[])
    machine = board.machine
    machine.plug(disk())
    port = next(iter(machine.pci.ports.values()))
    with board:
        board.said("ROUND 2")
        with machine.lock:
            port.eject()
        assert board.ejected_ids == ["disk0"]
        machine.remove("disk0")
        rounds = board.output.count("ROUND")
        machine.pause()
        machine.resume()
        machine.plug(disk("disk1"))
        assert port.child is not None
        assert board.ending is None
        assert board.output.count("ROUND") == rounds
