"""Configuration space, BARs and capabilities of a function."""

from __future__ import annotations

import pytest

from nagaya.abi import pci
from nagaya.errors import ResourceError, UsageError
from nagaya.hw.bus import Bus
from nagaya.hw.capabilities import Capability
from nagaya.hw.pci import Bar, Identity, PciFunction, Windows
from nagaya.testing.wires import FakeInterrupts

WINDOW = (0xC0000000, 0x10000000)
HIGH = (1 << 40, 1 << 36)
IDENTITY = Identity(0x1AF4, 0x1042, pci.PCI_CLASS_STORAGE_SCSI, 1, 0x1AF4, 0x42)
DECODE = pci.Command.of(MEMORY=1)


class Memory:
    """Registers that are plain bytes."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.content[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.content[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture
def bus() -> Bus:
    return Bus("memory", 1 << 48)


@pytest.fixture
def windows(bus: Bus) -> Windows:
    return Windows(bus, [WINDOW, HIGH])


def _plugged(windows: Windows, **bars: Bar) -> PciFunction:
    function = PciFunction(IDENTITY, bars={int(name[1:]): bar for name, bar in bars.items()})
    function.plug(windows, pci.PCI_EXP_TYPE_RC_END)
    return function


def _capabilities(function: PciFunction) -> dict[int, int]:
    """Id and place of each entry of the list, walked as a guest does."""
    found = {}
    at = function.read(pci.PCI_CAPABILITY_LIST, 1)
    while at:
        found[function.read(at, 1)] = at
        at = function.read(at + 1, 1)
    return found


def test_identity_is_where_guests_look(windows: Windows) -> None:
    function = _plugged(windows)
    assert function.read(0, 4) == 0x10421AF4
    assert function.read(8, 4) == 0x01000001
    assert function.read(pci.PCI_SUBSYSTEM_VENDOR_ID, 4) == 0x00421AF4
    assert function.read(pci.PCI_HEADER_TYPE, 1) == 0
    function.write(0, 8, 0)
    assert function.read(0, 4) == 0x10421AF4


def test_a_bar_tells_its_size_and_answers_where_it_is_put(bus: Bus, windows: Windows) -> None:
    memory = Memory(0x4000)
    function = _plugged(windows, _0=Bar(0x4000, memory))
    function.write(pci.PCI_BASE_ADDRESS_0, 4, 0xFFFFFFFF)
    assert function.read(pci.PCI_BASE_ADDRESS_0, 4) == 0xFFFFC000
    function.write(pci.PCI_BASE_ADDRESS_0, 4, 0xC0010000)
    assert bus.ranges == ()
    function.write(pci.PCI_COMMAND, 2, DECODE)
    bus.write(0xC0010008, 4, 0x12345678)
    assert memory.content[8:12] == bytes.fromhex("78563412")
    function.write(pci.PCI_BASE_ADDRESS_0, 4, 0xC0020000)
    assert bus.read(0xC0010008, 4) == 0xFFFFFFFF
    assert bus.read(0xC0020008, 4) == 0x12345678
    function.write(pci.PCI_COMMAND, 2, 0)
    assert bus.ranges == ()


def test_a_wide_bar_has_two_registers(bus: Bus, windows: Windows) -> None:
    function = _plugged(windows, _2=Bar(1 << 33, Memory(8), wide=True, prefetchable=True))
    function.write(pci.PCI_BASE_ADDRESS_0 + 8, 8, (1 << 64) - 1)
    assert function.read(pci.PCI_BASE_ADDRESS_0 + 8, 8) == (1 << 64) - (1 << 33) | 0xC
    function.write(pci.PCI_COMMAND, 2, DECODE)
    function.assign(2, 1 << 40)
    assert [(one.base, one.size) for one in bus.ranges] == [(1 << 40, 1 << 33)]


@pytest.mark.parametrize("base", [0, 0xBFFFF000, 0xD0000000, 0xFEE00000, 0xFFFFF000])
def test_a_bar_outside_the_windows_answers_nowhere(bus: Bus, windows: Windows, base: int) -> None:
    function = _plugged(windows, _0=Bar(0x1000, Memory(0x1000)))
    function.write(pci.PCI_COMMAND, 2, DECODE)
    function.assign(0, base)
    assert bus.ranges == ()


def test_a_bar_over_another_waits_until_that_one_goes(bus: Bus, windows: Windows) -> None:
    moves: list[tuple[int | None, int | None]] = []
    first = _plugged(windows, _0=Bar(0x2000, Memory(0x2000)))
    second = _plugged(windows, _0=Bar(0x1000, Memory(0x1000), moved=lambda *move: moves.append(move)))
    for function in (first, second):
        function.write(pci.PCI_COMMAND, 2, DECODE)
    first.assign(0, 0xC0000000)
    second.assign(0, 0xC0001000)
    assert [one.size for one in bus.ranges] == [0x2000]
    first.assign(0, 0xC0008000)
    assert [one.base for one in bus.ranges] == [0xC0001000, 0xC0008000]
    second.unplug()
    assert moves == [(None, 0xC0001000), (0xC0001000, None)]


def test_capabilities_form_a_list(windows: Windows, interrupts: FakeInterrupts) -> None:
    function = PciFunction(
        IDENTITY,
        capabilities=(Capability.fixed(pci.PCI_CAP_ID_VNDR, b"\x10" + bytes(13)),),
        interrupts=interrupts,
        msix_vectors=3,
    )
    found = _capabilities(function)
    assert list(found) == [pci.PCI_CAP_ID_EXP, pci.PCI_CAP_ID_VNDR, pci.PCI_CAP_ID_MSIX]
    assert function.read(pci.PCI_STATUS, 2) == pci.Status.of(CAPABILITIES=1)
    assert function.read(found[pci.PCI_CAP_ID_VNDR] + 2, 1) == 0x10
    assert function.read(found[pci.PCI_CAP_ID_MSIX] + pci.PCI_MSIX_FLAGS, 2) == 2
    assert function.read(found[pci.PCI_CAP_ID_MSIX] + pci.PCI_MSIX_TABLE, 4) == 1
    function.close()


def test_what_does_not_fit_is_refused(interrupts: FakeInterrupts) -> None:
    with pytest.raises(UsageError, match="power of two"):
        Bar(0x1800, Memory(1))
    with pytest.raises(UsageError, match="BAR 1"):
        PciFunction(IDENTITY, bars={0: Bar(4096, Memory(1), wide=True), 1: Bar(4096, Memory(1))})
    with pytest.raises(UsageError, match="BAR 5"):
        PciFunction(IDENTITY, bars={5: Bar(4096, Memory(1), wide=True)})
    with pytest.raises(UsageError, match="256 bytes"):
        PciFunction(IDENTITY, capabilities=[Capability.fixed(9, bytes(62))] * 4)
    with pytest.raises(UsageError, match="MSI-X"):
        PciFunction(IDENTITY, msix_vectors=1)
    interrupts.limit = 2
    with pytest.raises(ResourceError):
        PciFunction(IDENTITY, interrupts=interrupts, msix_vectors=3)
    assert [one.fd for one in interrupts.vectors] == [-1, -1]


def test_reset_is_power_on(bus: Bus, windows: Windows) -> None:
    resets: list[int] = []
    function = PciFunction(IDENTITY, bars={0: Bar(4096, Memory(4096))}, on_reset=lambda: resets.append(1))
    function.plug(windows, pci.PCI_EXP_TYPE_ENDPOINT)
    before = [function.read(at, 4) for at in range(0, 256, 4)]
    function.assign(0, 0xC0000000)
    function.write(pci.PCI_COMMAND, 2, 0xFFFF)
    assert [one.base for one in bus.ranges] == [0xC0000000]
    function.reset()
    assert [function.read(at, 4) for at in range(0, 256, 4)] == before
    assert list(bus.ranges) == []
    assert resets == [1]


def test_extended_space_and_odd_accesses_read_as_their_parts(windows: Windows) -> None:
    function = _plugged(windows)
    assert function.read(0x100, 8) == 0
    assert function.read(0xFFE, 4) == 0
    assert function.read(1, 4) == 0x0010421A
    function.write(0xFFF, 8, (1 << 64) - 1)
