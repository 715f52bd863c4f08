"""MSI-X: a capability, and a table of vectors with their pending bits in memory (PCI 3.0, 6.8.2)."""

from __future__ import annotations

import os
from functools import cache
from typing import Final

from nagaya.abi import pci
from nagaya.abi.registers import Register
from nagaya.errors import UsageError
from nagaya.hw import layout
from nagaya.hw.capabilities import Capability, capability_map
from nagaya.hw.registers import RegisterAt, RegisterMap
from nagaya.hw.wires import Interrupts, Vector

FLAGS: Final = RegisterAt(
    "message control", pci.PCI_MSIX_FLAGS, 2, pci.MsixFlags, writable=pci.MsixFlags.of(MASKALL=1, ENABLE=1)
)
TABLE: Final = RegisterAt("vector table", pci.PCI_MSIX_TABLE, 4, Register)
PENDING: Final = RegisterAt("pending bits", pci.PCI_MSIX_PBA, 4, Register)
_MAP: Final = capability_map(pci.MSIX_SIZE, (FLAGS, TABLE, PENDING))

_ENTRY: Final = RegisterMap(
    pci.PCI_MSIX_ENTRY_SIZE,
    (
        RegisterAt("address", pci.PCI_MSIX_ENTRY_LOWER_ADDR, 8, Register, writable=(1 << 64) - 4),
        RegisterAt("payload", pci.PCI_MSIX_ENTRY_DATA, 4, Register, writable=0xFFFFFFFF),
        RegisterAt("control", pci.PCI_MSIX_ENTRY_VECTOR_CTRL, 4, Register, reset=1, writable=1),
    ),
)


@cache
def _table_map(count: int) -> tuple[bytes, int]:
    """What a table of `count` entries holds after a reset, and as one number which bits are writable."""
    return bytes(_ENTRY.reset) * count, int.from_bytes(_ENTRY.writable * count, "little")


class Msix:
    """The vectors of one function; `vectors[n].fd` is the eventfd that interrupts the guest.

    A vector is open while MSI-X is enabled, neither the function nor the vector is masked, the function is
    bus master, and the address is a local APIC's; otherwise its eventfd collects.
    `size` bytes at the start of a BAR are the table, the upper half the pending bits.
    """

    def __init__(self, interrupts: Interrupts, count: int, bar: int) -> None:
        """`count` vectors, their table in BAR `bar`. Raises `ResourceError` if the host has not so many."""
        if not 1 <= count <= pci.MSIX_VECTORS_MAX:
            raise UsageError(f"MSI-X has 1 to {pci.MSIX_VECTORS_MAX} vectors, not {count}")
        self.size = max(layout.PAGE, 1 << (2 * pci.PCI_MSIX_ENTRY_SIZE * count - 1).bit_length())
        self.capability = Capability(pci.PCI_CAP_ID_MSIX, _MAP)
        self.capability.preset(FLAGS, pci.MsixFlags.of(SIZE=count - 1))
        self.capability.preset(TABLE, bar)
        self.capability.preset(PENDING, self.size // 2 | bar)
        self.capability.on_write(FLAGS, lambda before: self._update_all())
        self._reset, self._writable = _table_map(count)
        self._table = bytearray(self._reset)
        self._open: list[tuple[int, int] | None] = [None] * count
        self._master = False
        vectors: list[Vector] = []
        try:
            for _ in range(count):
                vectors.append(interrupts.vector())
        except BaseException:
            for one in vectors:
                one.close()
            raise
        self.vectors = tuple(vectors)

    def master(self, allowed: bool) -> None:
        """Whether the function may write to memory, which is what a message is (PCI 3.0, 6.8.2.1)."""
        if allowed != self._master:
            self._master = allowed
            self._update_all()

    def signal(self, index: int) -> None:
        """Interrupt the guest by vector `index`, now or when it is unmasked."""
        os.eventfd_write(self.vectors[index].fd, 1)

    def reset(self) -> None:
        """All masked and disabled, as at power-on; signals that were held back are gone."""
        self.capability.reset()
        self._table[:] = self._reset
        self._master = False
        self._update_all()
        for one in self.vectors:
            if one.pending():
                os.eventfd_read(one.fd)

    def close(self) -> None:
        """Give back the vectors."""
        for one in self.vectors:
            one.close()

    def read(self, offset: int, size: int) -> int:
        """The table, and the pending bits from the middle on."""
        half = self.size // 2
        if offset < half:
            return int.from_bytes(self._table[offset : offset + size], "little")
        first = 8 * (offset - half)
        pending = 0
        for index in range(first, min(first + 8 * size, len(self.vectors))):
            if self._open[index] is None and self.vectors[index].pending():
                pending |= 1 << (index - first)
        return pending

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest may write to the table only."""
        end = min(offset + size, len(self._table))
        if offset >= end:
            return
        writable = self._writable >> (8 * offset) & ((1 << (8 * (end - offset))) - 1)
        old = int.from_bytes(self._table[offset:end], "little")
        self._table[offset:end] = (old & ~writable | value & writable).to_bytes(end - offset, "little")
        enabled = self._enabled()
        for index in range(offset // pci.PCI_MSIX_ENTRY_SIZE, (end - 1) // pci.PCI_MSIX_ENTRY_SIZE + 1):
            self._update(index, enabled)

    def _enabled(self) -> bool:
        control = self.capability[FLAGS]
        return self._master and bool(control.ENABLE) and not control.MASKALL

    def _update_all(self) -> None:
        enabled = self._enabled()
        for index in range(len(self.vectors)):
            self._update(index, enabled)

    def _update(self, index: int, enabled: bool) -> None:
        """Bring a vector into the state that its table entry asks for."""
        wanted = None
        if enabled:
            at = index * pci.PCI_MSIX_ENTRY_SIZE
            entry = self._table[at : at + pci.PCI_MSIX_ENTRY_SIZE]
            address = int.from_bytes(entry[:8], "little")
            masked = entry[pci.PCI_MSIX_ENTRY_VECTOR_CTRL] & pci.PCI_MSIX_ENTRY_CTRL_MASKBIT
            # Other addresses would be writes to memory, which is not what irqfds do (Intel SDM 3A, 11.11.1).
            if not masked and address >> 20 == layout.LAPIC >> 20:
                wanted = address, int.from_bytes(entry[8:12], "little")
        if wanted == self._open[index]:
            return
        self._open[index] = wanted
        if wanted is None:
            self.vectors[index].mask()
        else:
            self.vectors[index].unmask(*wanted)
