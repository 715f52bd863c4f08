"""The PCI Express root: its bus and ports, how a guest reaches configuration space, and what is assigned.

There is no firmware, so numbers of buses, BARs and bridge windows are assigned here, at power-on. A guest
may move them (Linux checks them and keeps them). The other way, to leave all at zero, also works with Linux,
but not with guests that trust firmware, and small ones would have to carry an allocator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from nagaya.abi import pci
from nagaya.errors import ConflictError, ResourceError
from nagaya.hw import layout
from nagaya.hw.bus import Bus, Registers
from nagaya.hw.pci import ALL_ONES, Identity, PciFunction, Windows
from nagaya.hw.root_port import MEMORY_BASE, MEMORY_LIMIT, PRIMARY, SECONDARY, SUBORDINATE, RootPort

DEVICES: Final = 32  # on a bus
# The host bridge's ids, by Red Hat, for one that copies nobody's hardware (pci.ids: 1b36:0008).
HOST_BRIDGE: Final = Identity(vendor=0x1B36, device=0x0008, class_code=pci.PCI_CLASS_BRIDGE_HOST)
PORT_WINDOW: Final = 2 * layout.MIB  # of memory behind each port, so that a device can be plugged
_PORT_GRANULE: Final = layout.MIB  # what a bridge's window registers can say


class PciHost:
    """The root bus. Device 0 is the host bridge; others are functions or root ports."""

    def __init__(self, memory: Bus, windows: Sequence[tuple[int, int]]) -> None:
        """BARs decode on the bus `memory`, in `windows` of (base, size); one of them lies below 4 GiB."""
        self.windows = Windows(memory, windows)
        self.ports: dict[int, RootPort] = {}  # by device number
        self._root: dict[int, PciFunction] = {}
        self.add(PciFunction(HOST_BRIDGE))

    def add(self, function: PciFunction) -> int:
        """Put `function` onto the root bus, where it stays. Returns its device number."""
        number = self._free()
        self._root[number] = function
        function.plug(self.windows, pci.PCI_EXP_TYPE_RC_END)
        return number

    def add_port(self, port: RootPort) -> int:
        """Put a port onto the root bus. Returns its device number."""
        number = self._free()
        self._root[number] = port.function
        self.ports[number] = port
        port.attach(self.windows)
        return number

    def functions(self) -> Iterator[tuple[int, int, PciFunction]]:
        """Every function that is there: bus, device number, function."""
        for number, function in self._root.items():
            yield 0, number, function
        for port in self.ports.values():
            if port.child is not None:
                yield port.bus, 0, port.child

    def find(self, bus: int, device: int, function: int) -> PciFunction | None:
        """The function at an address; there is one for each device."""
        if function != 0:
            return None
        if bus == 0:
            return self._root.get(device)
        for port in self.ports.values():
            if port.bus == bus:
                return port.child if device == 0 else None
        return None

    def power_on(self) -> None:
        """Reset every function and assign buses, BARs and windows. Nothing decodes until the guest says so.

        Raises `ResourceError` if the windows do not suffice.
        """
        for number, function in self._root.items():
            if number in self.ports:
                self.ports[number].reset()
            else:
                function.reset()
        spaces = [_Space(base, size) for base, size in self.windows.ranges]
        low = next(space for space in spaces if space.end <= layout.HIGH_RAM)
        high = next((space for space in spaces if space is not low), low)
        bus = 0
        for number, function in self._root.items():
            for index, bar in function.bars.items():
                function.assign(index, (high if bar.wide else low).take(bar.size, bar.size))
            if number in self.ports:
                bus += 1
                _assign_port(self.ports[number], bus, low)

    def close(self) -> None:
        """Give back what all functions took from the host."""
        for _bus, _device, function in self.functions():
            function.unplug()
            function.close()

    def _free(self) -> int:
        for number in range(DEVICES):
            if number not in self._root:
                return number
        raise ConflictError(f"the root bus has {DEVICES} devices, and all are taken")


class Ecam:
    """Configuration space in memory: 4 KiB for each function (PCIe 3.0, 7.2.2)."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read(self, offset: int, size: int) -> int:
        """All ones where no function is."""
        function = self._host.find(offset >> 20, offset >> 15 & 31, offset >> 12 & 7)
        return (1 << (8 * size)) - 1 if function is None else function.read(offset & 0xFFF, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing happens where no function is."""
        function = self._host.find(offset >> 20, offset >> 15 & 31, offset >> 12 & 7)
        if function is not None:
            function.write(offset & 0xFFF, size, value)


class ConfigPorts:
    """Configuration space by an address and a data port, 0xcf8 and 0xcfc (PCI 3.0, 3.2.2.3.2).

    Port 0xcf9 lies among them and is another device's: the one that resets the machine.
    """

    def __init__(self, host: PciHost, reset: Registers) -> None:
        """`reset` answers single bytes at port 0xcf9."""
        self._ecam = Ecam(host)
        self._reset = reset
        self._address = pci.ConfigAddress(0)

    def read(self, offset: int, size: int) -> int:
        """All ones where no function is, or the address is not enabled."""
        if offset == 0 and size == 4:
            return self._address
        if offset == 1 and size == 1:
            return self._reset.read(0, 1)
        at = self._at(offset)
        return ALL_ONES if at is None else self._ecam.read(at, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Only a write of four bytes sets the address."""
        if offset == 0 and size == 4:
            self._address = pci.ConfigAddress(value & 0x80FFFFFC)
        elif offset == 1 and size == 1:
            self._reset.write(0, 1, value)
        else:
            at = self._at(offset)
            if at is not None:
                self._ecam.write(at, size, value)

    def _at(self, offset: int) -> int | None:
        """Where the data port leads to, as an offset of ECAM."""
        where = self._address
        if offset < 4 or not where.ENABLE:
            return None
        device = where.BUS << 8 | where.DEVICE << 3 | where.FUNCTION
        return device << 12 | where.OFFSET << 2 | offset - 4


class _Space:
    """What is still free of a window, lowest first."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.end = base, base + size

    def take(self, size: int, align: int) -> int:
        start = -(-self.base // align) * align
        if start + size > self.end:
            free = max(self.end - self.base, 0)
            raise ResourceError(
                f"no room for {size:#x} bytes of PCI memory: {free:#x} below {self.end:#x} are free",
                hint="Give the machine fewer devices or root ports.",
            )
        self.base = start + size
        return start


def _assign_port(port: RootPort, bus: int, space: _Space) -> None:
    """Number the bus behind `port`, give it a window, and the device in the slot its BARs within."""
    bars = port.child.bars if port.child is not None else {}
    largest = max((bar.size for bar in bars.values()), default=0)
    # Largest first: then each is aligned where the one before it ends.
    needed = sum(bar.size for bar in bars.values())
    size = max(PORT_WINDOW, -(-needed // _PORT_GRANULE) * _PORT_GRANULE)
    base = space.take(size, max(_PORT_GRANULE, largest))
    header = port.function.header
    header[PRIMARY], header[SECONDARY], header[SUBORDINATE] = 0, bus, bus
    header[MEMORY_BASE] = base >> 16
    header[MEMORY_LIMIT] = base + size - _PORT_GRANULE >> 16
    if port.child is not None:
        for index in sorted(bars, key=lambda index: -bars[index].size):
            port.child.assign(index, base)
            base += bars[index].size
