"""Importing disk image files of any of `formats.FORMATS` as base images."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nagaya.errors import SpecError
from nagaya.images.formats import DRIVERS, Format, check_size, recognise
from nagaya.images.merge import Work
from nagaya.images.qemuimg import Node, QemuImg
from nagaya.images.store import Image, ImageStore
from nagaya.plane.config import Layer
from nagaya.plane.copying import work as copy_job
from nagaya.progress import Progress

_COPIED = 0.8  # of the whole; the rest is the digest


async def import_image(
    store: ImageStore,
    qemu: QemuImg,
    name: str,
    source: Path,
    stated: Format | None,
    *,
    work: Work,
    progress: Progress,
) -> Image:
    """Copy the disk in `source` into the store as `name`. Cancelled or failed, it leaves nothing.

    `stated`: its format, else told by its header. `work` does host work on disks: a raw disk is copied so.
    Raises `SpecError` for a file that is damaged or needs other files, `ConflictError` if the name is taken
    or a raw file is being written, `ResourceError` on a full disk.
    """
    store.require_free(name)
    found = await asyncio.to_thread(recognise, source, stated)
    node = Node(source, DRIVERS[found.format])
    size = found.size if found.format == "raw" else _size(source, await qemu.info(node))

    def copied(step: str, fraction: float | None) -> None:
        progress(step, None if fraction is None else fraction * _COPIED)

    with store.area.work() as area:
        raw = area.path / "image.raw"
        raw.touch(mode=0o600)
        if found.format == "raw":
            job = copy_job("import", name, (Layer(str(source), "raw"),), (Layer(str(raw), "raw"),))
            await work(job, "copy", copied)
        else:
            await qemu.convert([node], raw, "raw", size, progress=copied)
        progress("store the image", _COPIED)
        return await asyncio.to_thread(store.add, name, raw)


def _size(source: Path, facts: dict[str, object]) -> int:
    """The disk's size, from the program that will copy it."""
    size = facts.get("virtual-size")
    if not isinstance(size, int) or size <= 0 or size % 512:
        raise SpecError(f"{source} holds a disk of {size!r} bytes; it must be a multiple of 512, and not 0")
    check_size(source, size)
    if facts.get("backing-filename") or facts.get("encrypted"):
        raise SpecError(f"{source} needs another file or a key; an import takes whole, plain disks")
    return size
