"""What every boot protocol tells a kernel, in one form; and the memory map."""

from __future__ import annotations

from dataclasses import dataclass

from nagaya.abi.boot import E820_RAM, E820_RESERVED
from nagaya.hw import layout


@dataclass(frozen=True, slots=True)
class Module:
    """A file beside the kernel, in guest memory."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class BootInfo:
    """What a kernel is told; its command line is at `layout.CMDLINE`."""

    memory: int  # bytes of RAM
    initrd: Module | None
    rsdp: int  # guest-physical address; 0: no ACPI


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """An entry of the memory map, of type E820_*."""

    address: int
    size: int
    kind: int


def memory_map(memory: int) -> tuple[MemoryRange, ...]:
    """The address ranges of a machine with `memory` bytes, lowest first (ACPI 6.5, 15)."""
    (_, low), *high = layout.ram_ranges(memory)
    return (
        MemoryRange(0, layout.EBDA, E820_RAM),
        MemoryRange(layout.EBDA, layout.KERNEL - layout.EBDA, E820_RESERVED),
        MemoryRange(layout.KERNEL, low - layout.KERNEL, E820_RAM),
        MemoryRange(layout.ECAM, layout.ECAM_SIZE, E820_RESERVED),
        *(MemoryRange(address, size, E820_RAM) for address, size in high),
    )
