"""Reading the capped logs of machines: the end of them, and what comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from nagaya.ansi import AnsiStripper

BLOCK = 64 * 1024
FOLLOW_INTERVAL = 0.1  # s between looks at a log that somebody follows


def halves(path: Path) -> list[Path]:
    """The files of a capped log that are there, the older first."""
    return [file for file in (path.with_name(path.name + ".1"), path) if file.exists()]


def tail_start(files: list[Path], lines: int) -> tuple[int, int]:
    """Where the last `lines` lines begin: the index of the file and the offset in it."""
    missing = lines + 1  # the newline before the first wanted line
    last = True
    for index in reversed(range(len(files))):
        with files[index].open("rb") as file:
            position = file.seek(0, 2)
            while position > 0:
                step = min(BLOCK, position)
                position = file.seek(position - step)
                block = file.read(step)
                if last and not block.endswith(b"\n"):
                    missing -= 1  # the last line is not finished yet, it counts too
                last = False
                count = block.count(b"\n")
                if count >= missing:
                    return index, position + _nth_newline_from_end(block, missing) + 1
                missing -= count
    return 0, 0


async def read(path: Path, *, tail: int | None, raw: bool, follow: bool) -> AsyncGenerator[bytes, None]:
    """The log, cleaned of control sequences unless `raw`; with `follow` what is added too, for ever."""
    clean = _cleaner(raw)
    files = await asyncio.to_thread(halves, path)
    index, offset = (0, 0) if tail is None else await asyncio.to_thread(tail_start, files, tail)
    position, inode = 0, 0
    for number, file in enumerate(files[index:]):
        with file.open("rb") as stream:  # a local file's block is quicker than a thread
            inode = _inode(stream.fileno())
            stream.seek(offset if number == 0 else 0)
            while block := stream.read(BLOCK):
                yield clean(block)
                await asyncio.sleep(0)
            position = stream.tell()
    while follow:
        await asyncio.sleep(FOLLOW_INTERVAL)
        added, position, inode = _added(path, position, inode)
        if added:
            yield clean(added)


def _added(path: Path, position: int, inode: int) -> tuple[bytes, int, int]:
    """What was written after `position`; a log that was rotated or cut is read from its beginning."""
    try:
        with path.open("rb") as stream:
            found = _inode(stream.fileno())
            rest = b""
            if inode and found != inode:
                rest = _rest_of(path.with_name(path.name + ".1"), position, inode)
            size = stream.seek(0, 2)
            stream.seek(position if found == inode and position <= size else 0)
            block = stream.read(BLOCK)
            return rest + block, stream.tell(), found
    except FileNotFoundError:
        return b"", 0, 0


def _rest_of(older: Path, position: int, inode: int) -> bytes:
    try:
        with older.open("rb") as stream:
            if _inode(stream.fileno()) != inode:
                return b""
            stream.seek(position)
            return stream.read()
    except FileNotFoundError:
        return b""


def _inode(descriptor: int) -> int:
    return os.fstat(descriptor).st_ino


def _cleaner(raw: bool) -> Callable[[bytes], bytes]:
    if raw:
        return lambda block: block
    stripper = AnsiStripper()
    return lambda block: stripper.feed(block).encode()


def _nth_newline_from_end(block: bytes, count: int) -> int:
    position = len(block)
    for _ in range(count):
        position = block.rindex(b"\n", 0, position)
    return position
