"""A host that loses its power, played back from a log of writes in the format of Linux' dm-log-writes.

What was flushed is on the disk. Of what came after, any part may be: here single writes of it, in any order,
some of them cut between two blocks of 4 KiB, which the device tells as its physical ones. File systems rely
on whole blocks: a superblock of ext4 is larger than a sector.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import ProtocolError

SECTOR, BLOCK = 512, 4096
_MAGIC = 0x6A736677736872
_FLUSH, _DISCARD = 1, 4
_HEAD = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<4Q")


@dataclass(frozen=True, slots=True)
class Write:
    """A write at byte `offset`, or a discard, whose content is zeroes."""

    offset: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Epoch:
    """What became durable by one flush, in the order in which it was done."""

    writes: tuple[Write, ...]


def read_log(path: Path) -> list[Epoch]:
    """All that a log holds. Raises `ProtocolError` if it is none."""
    log = path.read_bytes()
    magic, version, entries, sector = _HEAD.unpack_from(log)
    if (magic, version, sector) != (_MAGIC, 1, SECTOR):
        raise ProtocolError(f"{path} is no log of writes: {magic:#x}, version {version}, sectors of {sector}")
    epochs: list[Epoch] = []
    writes: list[Write] = []
    at = SECTOR
    for _ in range(entries):
        first, sectors, flags, _length = _ENTRY.unpack_from(log, at)
        at += SECTOR
        size = sectors * SECTOR
        if flags & _DISCARD:
            writes.append(Write(first * SECTOR, bytes(size)))
        elif size:
            writes.append(Write(first * SECTOR, log[at : at + size]))
            at += size
        if flags & _FLUSH:
            epochs.append(Epoch(tuple(writes)))
            writes.clear()
    return epochs


def losses(disk: bytes, epochs: list[Epoch], points: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """`points` disks after a loss of power, evenly over the log: how many epochs are whole, and the content.

    `disk` is what there was before the log.
    """
    chance = random.Random(seed)  # noqa: S311 - a test is to be repeated
    content = bytearray(disk)
    wanted = {len(epochs) * point // points for point in range(points)}
    for number, epoch in enumerate(epochs):
        if number in wanted:
            rest = bytearray(content)
            for write in chance.sample(epoch.writes, chance.randint(0, len(epoch.writes))):
                _apply(rest, _cut(write, chance))
            yield number, bytes(rest)
        for write in epoch.writes:
            _apply(content, write)
    yield len(epochs), bytes(content)


def _cut(write: Write, chance: random.Random) -> Write:
    """The same, or in one case of four only its first or its last blocks."""
    middle = BLOCK - write.offset % BLOCK
    if chance.random() < 0.75 or len(write.content) <= middle:
        return write
    middle += BLOCK * chance.randrange((len(write.content) - middle - 1) // BLOCK + 1)
    if chance.random() < 0.5:
        return Write(write.offset, write.content[:middle])
    return Write(write.offset + middle, write.content[middle:])


def _apply(disk: bytearray, write: Write) -> None:
    disk[write.offset : write.offset + len(write.content)] = write.content
