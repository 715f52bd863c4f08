"""How a machine's memory is laid out if it may be given more while it runs (`memory.max`)."""

from __future__ import annotations

from dataclasses import dataclass

from nagaya.hw import layout
from nagaya.knobs import Memory

MIN_BLOCK = 2 * layout.MIB
_BLOCKS = 65536  # that the plane keeps bits of; a larger region has larger blocks


@dataclass(frozen=True, slots=True)
class HotMemory:
    """What a machine boots with, and the region behind it in which its guest plugs memory. All in bytes."""

    boot: int  # what the guest begins with, and can never give back
    size: int  # of the region
    requested: int  # what of it the guest is to have plugged

    @property
    def block(self) -> int:
        """What is plugged at once."""
        return block_of(self.size)

    @property
    def start(self) -> int:
        """Guest-physical address of the region."""
        return layout.hot_start(self.boot)


def block_of(size: int) -> int:
    """What is plugged at once in a region of `size` bytes."""
    return max(MIN_BLOCK, 1 << (-(-size // _BLOCKS) - 1).bit_length())


def hot_memory(memory: Memory) -> HotMemory | None:
    """Of a machine that starts with `memory`; None if that is all that it can have.

    The region is never empty: of a machine that begins with all that it may have, the last block is plugged.
    """
    if memory.max is None:
        return None
    block = block_of(memory.max - memory.size)
    boot = min(memory.size, memory.max - block)
    return HotMemory(boot, memory.max - boot, memory.size - boot)


def present(memory: Memory, size: int, plugged: int) -> int:
    """What a guest has: its region of `size` bytes tells what it started with, and `plugged` came to it."""
    return (memory.max or memory.size) - size + plugged
