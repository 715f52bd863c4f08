"""A PCI function: configuration space with its header, BARs and capabilities (PCI 3.0, chapter 6).

A device is built around one:

    self.function = PciFunction(
        Identity(vendor=0x1AF4, device=0x1042, class_code=PCI_CLASS_STORAGE_SCSI),
        bars={0: Bar(0x4000, self)},                          # self.read and self.write answer there
        capabilities=(Capability.fixed(PCI_CAP_ID_VNDR, body),),
        interrupts=interrupts,
        msix_vectors=queues + 1,                              # function.msix.vectors[n].fd interrupts
        on_reset=self.reset,
    )

and put into a slot: `PciHost.add(function)` or `RootPort.plug(function)`. Nothing here raises on what a guest
writes: a BAR that lies outside the windows or over another one answers nowhere until it is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nagaya.abi import pci
from nagaya.abi.registers import Register
from nagaya.errors import ConflictError, UsageError
from nagaya.hw.bus import Bus, Registers
from nagaya.hw.capabilities import NEXT, Capability, Express
from nagaya.hw.msix import Msix
from nagaya.hw.registers import RegisterAt, RegisterBlock, RegisterMap
from nagaya.hw.wires import Interrupts

BARS: Final = 6
ALL_ONES: Final = 0xFFFFFFFF

VENDOR: Final = RegisterAt("vendor", pci.PCI_VENDOR_ID, 2, Register)
DEVICE: Final = RegisterAt("device", pci.PCI_DEVICE_ID, 2, Register)
COMMAND: Final = RegisterAt(
    "command",
    pci.PCI_COMMAND,
    2,
    pci.Command,
    writable=pci.Command.of(MEMORY=1, BUS_MASTER=1, PARITY=1, SERR=1, INTX_DISABLE=1),
)
STATUS: Final = RegisterAt("status", pci.PCI_STATUS, 2, pci.Status)
REVISION: Final = RegisterAt("revision", pci.PCI_REVISION_ID, 1, Register)
CLASS: Final = RegisterAt("class", pci.PCI_CLASS_DEVICE, 2, Register)
HEADER_TYPE: Final = RegisterAt("header type", pci.PCI_HEADER_TYPE, 1, Register)
FIRST_CAPABILITY: Final = RegisterAt("first capability", pci.PCI_CAPABILITY_LIST, 1, Register)
BAR: Final = tuple(RegisterAt(f"BAR {n}", pci.PCI_BASE_ADDRESS_0 + 4 * n, 4, Register) for n in range(BARS))
SUBSYSTEM_VENDOR: Final = RegisterAt("subsystem vendor", pci.PCI_SUBSYSTEM_VENDOR_ID, 2, Register)
SUBSYSTEM: Final = RegisterAt("subsystem", pci.PCI_SUBSYSTEM_ID, 2, Register)

COMMON: Final = (
    VENDOR,
    DEVICE,
    COMMAND,
    STATUS,
    REVISION,
    RegisterAt("programming interface", pci.PCI_CLASS_PROG, 1, Register),
    CLASS,
    RegisterAt("cache line size", pci.PCI_CACHE_LINE_SIZE, 1, Register, writable=0xFF),
    RegisterAt("latency timer", pci.PCI_LATENCY_TIMER, 1, Register),
    HEADER_TYPE,
    FIRST_CAPABILITY,
    RegisterAt("interrupt line", pci.PCI_INTERRUPT_LINE, 1, Register, writable=0xFF),
    RegisterAt("interrupt pin", pci.PCI_INTERRUPT_PIN, 1, Register),
)
ENDPOINT: Final = RegisterMap(pci.HEADER_SIZE, (*COMMON, *BAR, SUBSYSTEM_VENDOR, SUBSYSTEM))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is."""

    vendor: int
    device: int
    class_code: int  # base class and subclass, PCI_CLASS_*
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


class Bar:
    """A range of memory in which `registers` answer. `base` is where now, None if nowhere."""

    def __init__(
        self,
        size: int,
        registers: Registers,
        *,
        wide: bool = False,
        prefetchable: bool = False,
        moved: Callable[[int | None, int | None], None] | None = None,
    ) -> None:
        """`size`: a power of two from 4 KiB (a page, so that a guest can map it alone). `wide`: of 64 bits.

        `moved(before, now)` is called after each change of `base`; ioeventfds are bound and unbound there.
        """
        if size < 4096 or size & (size - 1) or size > (1 << 62 if wide else 1 << 31):
            raise UsageError(f"a BAR has a power of two from 4 KiB up, not {size:#x} bytes")
        self.size = size
        self.registers = registers
        self.wide = wide
        self.prefetchable = prefetchable
        self.base: int | None = None
        self._moved = moved

    @property
    def flags(self) -> int:
        """The low bits of its register."""
        wide = pci.PCI_BASE_ADDRESS_MEM_TYPE_64 if self.wide else 0
        return wide | (pci.PCI_BASE_ADDRESS_MEM_PREFETCH if self.prefetchable else 0)

    def move(self, base: int | None) -> None:
        """Note a new place; for `Windows`."""
        before, self.base = self.base, base
        if self._moved is not None and before != base:
            self._moved(before, base)


class Windows:
    """The parts of the address space that are for BARs, and which BAR has which."""

    def __init__(self, memory: Bus, ranges: Sequence[tuple[int, int]]) -> None:
        """`ranges` are (base, size) on the bus `memory`."""
        self.ranges = tuple(ranges)
        self._memory = memory
        self._wanted: dict[Bar, int] = {}

    def place(self, bar: Bar, base: int | None) -> None:
        """Let `bar` answer at `base`, or not at all; where another is, when that one has gone."""
        if self._wanted.get(bar) == base:
            return
        if bar.base is not None:
            self._memory.detach(bar.base)
            bar.move(None)
        if base is None:
            del self._wanted[bar]
        else:
            self._wanted[bar] = base
        for one, at in self._wanted.items():
            if one.base is None and any(
                start <= at and at + one.size <= start + size for start, size in self.ranges
            ):
                self._try(one, at)

    def _try(self, bar: Bar, base: int) -> None:
        try:
            self._memory.attach(base, bar.size, bar.registers)
        except ConflictError:
            return  # a guest may ask for this; it gets what it would get of hardware, confusion
        bar.move(base)


class PciFunction:
    """One function. A guest reads and writes its configuration space, a device its BARs and capabilities."""

    def __init__(
        self,
        identity: Identity,
        *,
        bars: Mapping[int, Bar] | None = None,
        capabilities: Sequence[Capability] = (),
        interrupts: Interrupts | None = None,
        msix_vectors: int = 0,
        msix_bar: int = 1,
        express: Express | None = None,
        header: RegisterMap = ENDPOINT,
        on_reset: Callable[[], None] | None = None,
    ) -> None:
        """MSI-X, if there are `msix_vectors`, has the BAR `msix_bar` for itself and takes from `interrupts`.

        `express`: another than an endpoint's. `on_reset` is called when the slot is reset or switched off.
        Raises `UsageError` if BARs overlap or capabilities do not fit, `ResourceError` if vectors run out.
        """
        self.identity = identity
        self.bars: dict[int, Bar] = dict(bars or {})
        self.express = express or Express()
        self.msix: Msix | None = None
        self.header = RegisterBlock(header)
        self._on_reset = on_reset
        self._windows: Windows | None = None
        if msix_vectors:
            if interrupts is None or msix_bar in self.bars:
                raise UsageError(f"MSI-X needs interrupts and BAR {msix_bar} for itself")
            self.msix = Msix(interrupts, msix_vectors, msix_bar)
            self.bars[msix_bar] = Bar(self.msix.size, self.msix)
            capabilities = (*capabilities, self.msix.capability)
        self._blocks: dict[int, tuple[int, RegisterBlock]] = {}  # by number of the dword
        try:
            self._identify()
            self._declare_bars()
            self._link((self.express, *capabilities))
        except BaseException:
            self.close()
            raise

    def plug(self, windows: Windows, kind: int) -> None:
        """Put it into a slot whose BARs decode in `windows`; `kind` is PCI_EXP_TYPE_*."""
        self.express.place(kind)
        self._windows = windows

    def unplug(self) -> None:
        """Take it out of its slot: it answers no more."""
        self._place_bars(decode=False)
        self._windows = None

    def reset(self) -> None:
        """Back to power-on: no BAR answers, no vector is open, the device is reset."""
        for _start, block in set(self._blocks.values()):
            block.reset()
        self._place_bars(decode=False)
        if self.msix is not None:
            self.msix.reset()
        if self._on_reset is not None:
            self._on_reset()

    def close(self) -> None:
        """Give back what it took from the host. Only once it is unplugged."""
        if self.msix is not None:
            self.msix.close()

    def address(self, index: int) -> int:
        """What BAR `index` holds, whether or not it decodes."""
        low = self.header[BAR[index]] & ~0xF
        return low | (self.header[BAR[index + 1]] << 32 if self.bars[index].wide else 0)

    def assign(self, index: int, address: int) -> None:
        """Store `address` in BAR `index`, as a guest would."""
        self.write(BAR[index].offset, 4, address & ALL_ONES)
        if self.bars[index].wide:
            self.write(BAR[index + 1].offset, 4, address >> 32)

    def read(self, offset: int, size: int) -> int:
        """Configuration space. Accesses of any size and alignment are those of their aligned parts."""
        value = shift = 0
        while size > 0:
            count = min(size, 4 - offset % 4)
            start, block = self._blocks.get(offset // 4, (0, None))
            if block is not None:
                value |= block.read(offset - start, count) << shift
            offset, size, shift = offset + count, size - count, shift + 8 * count
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Configuration space."""
        while size > 0:
            count = min(size, 4 - offset % 4)
            start, block = self._blocks.get(offset // 4, (0, None))
            if block is not None:
                block.write(offset - start, count, value & ((1 << (8 * count)) - 1))
            offset, size, value = offset + count, size - count, value >> (8 * count)

    def _identify(self) -> None:
        who, header = self.identity, self.header
        header.preset(VENDOR, who.vendor)
        header.preset(DEVICE, who.device)
        header.preset(REVISION, who.revision)
        header.preset(CLASS, who.class_code)
        if SUBSYSTEM in header.map.registers:
            header.preset(SUBSYSTEM_VENDOR, who.subsystem_vendor)
            header.preset(SUBSYSTEM, who.subsystem)
        header.on_write(COMMAND, self._commanded)

    def _declare_bars(self) -> None:
        taken: set[int] = set()
        for index, bar in self.bars.items():
            needs = {index, index + 1} if bar.wide else {index}
            if needs & taken or max(needs) >= BARS or BAR[max(needs)] not in self.header.map.registers:
                raise UsageError(f"BAR {index} overlaps another or is not there")
            taken |= needs
            mask = -bar.size & ~0xF
            self.header.preset(BAR[index], bar.flags)
            self.header.allow(BAR[index], mask & ALL_ONES)
            if bar.wide:
                self.header.allow(BAR[index + 1], mask >> 32 & ALL_ONES)
        for index in taken:
            self.header.on_write(BAR[index], lambda before: self._place_bars())

    def _link(self, capabilities: Sequence[Capability]) -> None:
        """Give each capability a place after the header, and the one before it that place."""
        at = pci.HEADER_SIZE
        where, link = self.header, FIRST_CAPABILITY
        for number in range(at // 4):
            self._blocks[number] = (0, self.header)
        for one in capabilities:
            if at + one.map.size > 256:
                raise UsageError(f"{len(capabilities)} capabilities do not fit into 256 bytes")
            where.preset(link, at)
            for number in range(at // 4, (at + one.map.size) // 4):
                self._blocks[number] = (at, one)
            where, link, at = one, NEXT, at + one.map.size
        if capabilities:
            self.header.preset(STATUS, pci.Status.of(CAPABILITIES=1))

    def _commanded(self, before: pci.Command) -> None:
        self._place_bars()
        if self.msix is not None:
            self.msix.master(bool(self.header[COMMAND].BUS_MASTER))

    def _place_bars(self, *, decode: bool = True) -> None:
        if self._windows is None:
            return
        decode = decode and bool(self.header[COMMAND].MEMORY)
        for index, bar in self.bars.items():
            self._windows.place(bar, self.address(index) if decode else None)
