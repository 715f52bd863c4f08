"""Moving data between the layers of a disk: merging them, and changing their base image.

What is below is copied into what is above, or the other way round, whichever is less. Until the record is
replaced, the old chain reads the same as before, with the copy half done or done: a layer that got what the
layers below it have reads no differently on top of them, and what a layer above hides may be overwritten. So
a kill at any instant costs nothing but space. The copying is the plane's, which gives machines their turns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nagaya.images.chain import DiskFiles, Layer, Record, layers_of, replace_by_link
from nagaya.images.qemuimg import Node
from nagaya.plane.config import CopyJob
from nagaya.plane.copying import work
from nagaya.progress import Progress

Work = Callable[[CopyJob, str, Progress], Awaitable[None]]  # the job, its step in the progress


@dataclass(frozen=True, slots=True)
class Mover:
    """Who copies between layers, and for which disk, by its name; `snapshot` if that is what goes."""

    work: Work
    disk: str
    snapshot: str = ""

    async def pull(self, chain: Sequence[Node], progress: Progress) -> None:
        """Copy into the top of `chain` what the layer below it has and the top has not."""
        layers = layers_of(chain)
        job = work("merge", self.disk, layers[1:2], layers, snapshot=self.snapshot, top_only=True, keep=True)
        await self.work(job, "copy what the layer below has", progress)

    async def push(self, chain: Sequence[Node], progress: Progress) -> None:
        """Copy what the top of `chain` has into the layer below it; the top stays as it is."""
        layers = layers_of(chain)
        job = work("merge", self.disk, layers[:1], layers[1:], snapshot=self.snapshot, top_only=True)
        await self.work(job, "copy into the layer below", progress)

    async def rebase(self, chain: Sequence[Node], onto: Sequence[Node], progress: Progress) -> None:
        """Copy into the top of `chain` what it needs, so that it reads the same with `onto` below it."""
        layers = layers_of(chain)
        job = work("rebase", self.disk, layers, layers, keep=True, unlike=layers_of(onto))
        await self.work(job, "copy what the layer below has", progress)


async def merge(files: DiskFiles, mover: Mover, progress: Progress) -> Record:
    """Merge the layers that no snapshot names with those above them. The present top becomes one of them."""
    record = files.record()
    if record.top_is_on_nameless():
        record = files.write(files.push(record))
    count = 0
    while (pair := record.mergeable()) is not None:
        count += 1
        upper, lower = pair
        await _join(files, record, upper, mover, numbered(progress, count))
        record = files.write(joined(record, upper, lower))
    return record


def joined(record: Record, upper: str, lower: str) -> Record:
    """`record` once the layer `upper` has all that `lower`, the one below it, has."""
    below = record.layers[lower]
    layer = Layer(size=record.layers[upper].size, parent=below.parent, base=below.base)
    layers = {**record.layers, upper: layer}
    del layers[lower]
    return record.model_copy(update={"layers": layers})


async def _join(files: DiskFiles, record: Record, upper: str, mover: Mover, progress: Progress) -> None:
    """Have the file `upper` hold all that it and the layer below it do."""
    chain = files.nodes(record, upper)
    above, below = chain[0].path, chain[1].path
    if above.samefile(below):  # a killed merge came so far
        return
    smaller = record.layers[below.name].size < record.layers[upper].size
    if smaller or _allocated(below) <= _allocated(above):
        await mover.pull(chain, progress)
    else:
        await mover.push(chain, progress)
        replace_by_link(below, above)


async def change_base(
    files: DiskFiles, digest: str, image: Node | None, mover: Mover, progress: Progress
) -> Record:
    """Have the disk lie on the base image `digest`, the file `image`, or on nothing, with the same
    content.
    """
    record = files.record()
    if not record.layers[record.top].parent:
        record = files.write(files.push(record))
    bottoms = [file for file, layer in record.layers.items() if not layer.parent and layer.base != digest]
    for number, file in enumerate(bottoms, 1):
        chain = files.nodes(record, file)
        await mover.rebase(chain, [image] if image else [], numbered(progress, number, len(bottoms)))
        layers = {**record.layers, file: Layer(size=record.layers[file].size, base=digest)}
        record = files.write(record.model_copy(update={"layers": layers}))
    return record


def numbered(progress: Progress, number: int, total: int = 0) -> Progress:
    """Progress of one layer of several."""
    of = f"{number} of {total}" if total else str(number)
    return lambda step, fraction: progress(f"layer {of}: {step}", fraction)


def _allocated(path: Path) -> int:
    return path.stat().st_blocks
