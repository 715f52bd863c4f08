"""The root: how a guest finds functions, what is assigned at power-on, and that no guest breaks it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nagaya.abi import pci
from nagaya.errors import ConflictError, ResourceError
from nagaya.hw import layout
from nagaya.hw.bus import Bus
from nagaya.hw.pci import Bar, Identity, PciFunction
from nagaya.hw.pci_host import ConfigPorts, Ecam, PciHost
from nagaya.hw.reset import ResetControl
from nagaya.hw.root_port import RootPort
from nagaya.testing.wires import FakeBoard, FakeDoorbells, FakeInterrupts

WINDOWS = ((layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE), (1 << 40, 1 << 36))
DISK = Identity(0x1AF4, 0x1042, pci.PCI_CLASS_STORAGE_SCSI)


class Device:
    """A function with a BAR of each kind, MSI-X, and a doorbell that follows the first BAR."""

    def __init__(self, interrupts: FakeInterrupts, doorbells: FakeDoorbells) -> None:
        self._doorbells = doorbells
        self.first = Bar(0x4000, self, moved=self._moved)
        self.function = PciFunction(
            DISK,
            bars={0: self.first, 2: Bar(0x10000, self, wide=True, prefetchable=True)},
            interrupts=interrupts,
            msix_vectors=2,
        )

    def _moved(self, before: int | None, now: int | None) -> None:
        if before is not None:
            self._doorbells.unbind(7, before + 0x3000, 2, 0)
        if now is not None:
            self._doorbells.bind(7, now + 0x3000, 2, 0)

    def read(self, offset: int, size: int) -> int:
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Root:
    """A host with two devices on its bus, one behind a port, and an empty port."""

    def __init__(self) -> None:
        self.interrupts = FakeInterrupts()
        self.doorbells = FakeDoorbells()
        self.memory = Bus("memory", 1 << 48)
        self.io = Bus("I/O ports", 1 << 16)
        self.board = FakeBoard()
        self.host = PciHost(self.memory, WINDOWS)
        self.memory.attach(layout.ECAM, layout.ECAM_SIZE, Ecam(self.host))
        self.io.attach(layout.PCI_CONFIG_PORT, 8, ConfigPorts(self.host, ResetControl(self.board)))
        self.devices = [Device(self.interrupts, self.doorbells) for _ in range(3)]
        self.ports = [RootPort(self.interrupts, slot) for slot in (1, 2)]
        self.host.add(self.devices[0].function)
        self.host.add(self.devices[1].function)
        for port in self.ports:
            self.host.add_port(port)
        self.ports[0].plug(self.devices[2].function)
        self.host.power_on()

    def read(self, bus: int, device: int, offset: int, size: int = 4) -> int:
        return self.memory.read(layout.ECAM + (bus << 20 | device << 15 | offset), size)

    def write(self, bus: int, device: int, offset: int, size: int, value: int) -> None:
        self.memory.write(layout.ECAM + (bus << 20 | device << 15 | offset), size, value)

    def close(self) -> None:
        self.host.close()


@pytest.fixture
def root() -> Root:
    return Root()


def test_a_guest_finds_every_function(root: Root) -> None:
    found = {
        (bus, device): root.read(bus, device, 0)
        for bus in range(4)
        for device in range(32)
        if root.read(bus, device, 0) != 0xFFFFFFFF
    }
    assert found == {
        (0, 0): 0x00081B36,
        (0, 1): 0x10421AF4,
        (0, 2): 0x10421AF4,
        (0, 3): 0x000C1B36,
        (0, 4): 0x000C1B36,
        (1, 0): 0x10421AF4,
    }
    assert [(bus, number) for bus, number, _function in root.host.functions()] == list(found)
    assert root.read(0, 3, pci.PCI_HEADER_TYPE, 1) == 1
    assert root.read(0, 1, 1 << 12) == 0xFFFFFFFF, "there is one function in a device"
    root.close()


def test_buses_bars_and_windows_are_assigned(root: Root) -> None:
    assert [root.read(0, device, pci.PCI_PRIMARY_BUS) for device in (3, 4)] == [0x010100, 0x020200]
    low, high = (range(base, base + size) for base, size in WINDOWS)
    taken: list[tuple[int, int]] = []
    for bus, device in ((0, 1), (0, 2), (1, 0)):
        first = root.read(bus, device, 0x10)
        wide = root.read(bus, device, 0x18, 8)
        assert first in low
        assert wide & 0xF == 0xC
        assert wide & ~0xF in (high if bus == 0 else low)
        taken += [(first, 0x4000), (wide & ~0xF, 0x10000), (root.read(bus, device, 0x14), 0x1000)]
    for port, inside in ((3, 3), (4, 0)):
        base = (root.read(0, port, pci.PCI_MEMORY_BASE, 2) & 0xFFF0) << 16
        end = ((root.read(0, port, pci.PCI_MEMORY_LIMIT, 2) & 0xFFF0) << 16) + 0x100000
        assert end - base == 2 * layout.MIB
        assert sum(base <= at < end for at, _size in taken) == inside
        taken.append((root.read(0, port, 0x10), 0x1000))
    taken.sort()
    assert all(at % size == 0 for at, size in taken)
    assert all(one[0] + one[1] <= other[0] for one, other in pairwise(taken))
    assert [one.base for one in root.memory.ranges] == [layout.ECAM], "nothing decodes before a driver asks"
    root.close()


def test_a_driver_switches_its_bars_on(root: Root) -> None:
    root.write(1, 0, pci.PCI_COMMAND, 2, pci.Command.of(MEMORY=1))
    assert root.memory.read(root.read(1, 0, 0x10), 1) == 0x5A
    assert root.doorbells.bound == {(root.read(1, 0, 0x10) + 0x3000, 2, 0): 7}
    root.close()
    assert root.doorbells.bound == {}


def test_the_ports_reach_the_same_space(root: Root) -> None:
    root.io.write(0xCF8, 4, 0x80000000 | 1 << 16 | pci.PCI_COMMAND)
    root.io.write(0xCFC, 2, 2)
    assert root.read(1, 0, pci.PCI_COMMAND, 2) == 2
    root.io.write(0xCF8, 4, 0x80000000 | 1 << 16)
    assert root.io.read(0xCFE, 2) == 0x1042
    assert root.io.read(0xCF8, 4) == 0x80010000
    root.io.write(0xCF8, 4, 1 << 16)
    assert root.io.read(0xCFC, 4) == 0xFFFFFFFF
    root.io.write(0xCF9, 1, 6)
    assert len(root.board.requests) == 1
    assert root.io.read(0xCF8, 4) == 1 << 16
    root.close()


def test_a_bus_renumbered_is_found_at_its_new_number(root: Root) -> None:
    root.write(0, 3, pci.PCI_SECONDARY_BUS, 2, 0x0909)
    assert root.read(1, 0, 0) == 0xFFFFFFFF
    assert root.read(9, 0, 0) == 0x10421AF4
    root.host.power_on()
    assert root.read(1, 0, 0) == 0x10421AF4
    root.close()


def test_what_does_not_fit_is_refused(interrupts: FakeInterrupts) -> None:
    host = PciHost(Bus("memory", 1 << 48), ((layout.PCI_MMIO32, 3 * layout.MIB),))
    for slot in range(31):
        host.add_port(RootPort(interrupts, slot))
    with pytest.raises(ConflictError, match="32 devices"):
        host.add_port(RootPort(interrupts, 99))
    with pytest.raises(ResourceError, match="PCI memory"):
        host.power_on()


class AnyGuest(RuleBasedStateMachine):
    """A configuration space fuzzer, with hot-plug in between."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Root()
        self.spare: list[Device] = []

    @rule(
        bus=st.integers(0, 3),
        device=st.integers(0, 5),
        offset=st.one_of(st.integers(0, 0xFF), st.integers(0, 0xFFF)),
        size=st.sampled_from((1, 2, 4, 8)),
        value=st.one_of(
            st.integers(0, (1 << 64) - 1),
            st.sampled_from((0, 2, 6, 0xFFFFFFFF, 0xC0000000, 0xC0004000, 0xFEE00000, 1 << 40)),
        ),
    )
    def write(self, bus: int, device: int, offset: int, size: int, value: int) -> None:
        self.root.write(bus, device, offset, min(size, 0x1000 - offset), value & ((1 << (8 * size)) - 1))

    @rule(device=st.integers(1, 4), bar=st.integers(0, 5), base=st.integers(0, 7), decode=st.booleans())
    def move(self, device: int, bar: int, base: int, decode: bool) -> None:
        """Few addresses, so that BARs meet."""
        self.root.write(0, device, 0x10 + 4 * bar, 4, layout.PCI_MMIO32 + 0x2000 * base)
        self.root.write(0, device, pci.PCI_COMMAND, 2, pci.Command.of(MEMORY=decode, BUS_MASTER=1))

    @rule(offset=st.integers(0, 7), size=st.sampled_from((1, 2, 4)), value=st.integers(0, (1 << 32) - 1))
    def ports(self, offset: int, size: int, value: int) -> None:
        self.root.io.write(0xCF8 + offset, size, value & ((1 << (8 * size)) - 1))
        assert 0 <= self.root.io.read(0xCF8 + offset, size) < 1 << (8 * size)

    @rule(
        bus=st.integers(0, 3),
        device=st.integers(0, 5),
        offset=st.integers(0, 0xFFF),
        size=st.sampled_from((1, 2, 4, 8)),
    )
    def read(self, bus: int, device: int, offset: int, size: int) -> None:
        assert 0 <= self.root.read(bus, device, offset, size) < 1 << (8 * size)

    @rule(port=st.integers(0, 1))
    def plug(self, port: int) -> None:
        if self.root.ports[port].child is None:
            self.root.ports[port].plug(Device(self.root.interrupts, self.root.doorbells).function)

    @rule(port=st.integers(0, 1), now=st.booleans())
    def unplug(self, port: int, now: bool) -> None:
        if now:
            self.root.ports[port].eject()
            return
        try:
            self.root.ports[port].request_unplug()
        except ConflictError as error:
            assert "slot" in error.message

    @rule()
    def reset(self) -> None:
        self.root.host.power_on()

    @invariant()
    def bars_lie_in_windows_and_doorbells_follow(self) -> None:
        expected = {}
        for one in self.root.memory.ranges:
            if one.base == layout.ECAM:
                continue
            assert any(base <= one.base and one.base + one.size <= base + size for base, size in WINDOWS)
            assert one.base % one.size == 0
            if isinstance(one.device, Device) and one.device.first.base == one.base:
                expected[one.base + 0x3000, 2, 0] = 7
        assert self.root.doorbells.bound == expected
        ranges = self.root.memory.ranges
        assert all(one.base + one.size <= other.base for one, other in pairwise(ranges))

    def teardown(self) -> None:
        self.root.close()
        self.root.interrupts.close()


TestAnyGuest = AnyGuest.TestCase
