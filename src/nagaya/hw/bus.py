"""A bus: address ranges and the devices that answer there. One for I/O ports, one for memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from nagaya.errors import ConflictError, UsageError


class Registers(Protocol):
    """What a bus can reach: registers at offsets from the range's start.

    Called with the machine's lock held, from whichever vCPU's thread. `size` is 1, 2, 4 or 8 bytes; an
    access never reaches beyond the range. A guest may send any offset, size and value, in any order.
    """

    def read(self, offset: int, size: int) -> int:
        """The value, `size` bytes, little endian."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `value`, which fits into `size` bytes."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a device is attached."""

    base: int
    size: int
    device: Registers


class Bus:
    """Finds the device of an address. What no one claims reads as all ones and swallows writes."""

    def __init__(self, name: str, size: int) -> None:
        """`name` is for messages; addresses are below `size`."""
        self.name = name
        self.unclaimed = 0  # accesses that reached no device
        self._size = size
        self._ranges: list[Range] = []
        self._bases: list[int] = []

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What is attached, lowest first."""
        return tuple(self._ranges)

    def attach(self, base: int, size: int, device: Registers) -> None:
        """Let `device` answer for `size` bytes from `base`. Raises `ConflictError` where another does."""
        if size < 1 or base < 0 or base + size > self._size:
            raise UsageError(f"{self.name} has no range of {size:#x} bytes at {base:#x}")
        at = bisect_right(self._bases, base)
        for other in self._ranges[max(at - 1, 0) : at + 1]:
            if base < other.base + other.size and other.base < base + size:
                raise ConflictError(
                    f"{self.name}: {base:#x} to {base + size:#x} overlaps {type(other.device).__name__}"
                    f" at {other.base:#x} to {other.base + other.size:#x}"
                )
        self._ranges.insert(at, Range(base, size, device))
        self._bases.insert(at, base)

    def detach(self, base: int) -> None:
        """Take away what was attached at `base`. Raises `KeyError` if there is nothing."""
        at = bisect_right(self._bases, base) - 1
        if at < 0 or self._bases[at] != base:
            raise KeyError(base)
        del self._ranges[at], self._bases[at]

    def read(self, address: int, size: int) -> int:
        """The value of `size` bytes at `address`."""
        found = self._find(address, size)
        if found is None:
            return (1 << (8 * size)) - 1
        return found.device.read(address - found.base, size) & ((1 << (8 * size)) - 1)

    def write(self, address: int, size: int, value: int) -> None:
        """Store `value` at `address`."""
        found = self._find(address, size)
        if found is not None:
            found.device.write(address - found.base, size, value)

    def _find(self, address: int, size: int) -> Range | None:
        at = bisect_right(self._bases, address) - 1
        if at >= 0:
            found = self._ranges[at]
            if address + size <= found.base + found.size:
                return found
        self.unclaimed += 1
        return None
