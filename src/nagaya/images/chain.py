"""A disk's files: layers, snapshots, and the record that says which layer lies on which.

<stem>.json         the record, replaced atomically; without one the disk is the single layer <stem>.qcow2
<stem>.qcow2, <stem>-<n>.qcow2
                    layers: qcow2, only the top one is ever written by a guest

The record is the truth: a layer's header names its backing file for other people's tools only. Every change
first makes what is new, then replaces the record, then removes what no record needs, so a kill at any
instant leaves the old disk or the new one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nagaya.errors import ConflictError, NotFoundError, ResourceError, UnavailableError
from nagaya.images.qemuimg import Node
from nagaya.images.workarea import replace_file, sync
from nagaya.plane import config

CreateOverlay = Callable[[str, int, str, str], None]  # path, size, backing path, backing format
Consistency = Literal["stopped", "filesystem", "crash"]

LAYERS_MOST = 24  # on top of each other; the plane opens 32


class Layer(BaseModel):
    """One file. It lies on `parent`, another layer's file name, or else on the base image `base`, or on
    nothing.
    """

    model_config = ConfigDict(frozen=True)

    size: int  # bytes that a guest sees with this layer on top
    parent: str = ""
    base: str = ""


class Snapshot(BaseModel):
    """A name for a layer that is not written any more. `consistency`: what a guest finds in it.

    "stopped": the machine was off; "filesystem": its file systems were frozen; "crash": as after a power
    loss.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    layer: str
    created_at: float
    consistency: Consistency


class Record(BaseModel):
    """All of a disk."""

    model_config = ConfigDict(frozen=True)

    top: str
    layers: dict[str, Layer]
    snapshots: tuple[Snapshot, ...] = ()
    created_at: float = 0.0

    def chain(self, top: str = "") -> list[str]:
        """The files from `top`, default the disk's, down."""
        files = [top or self.top]
        while parent := self.layers[files[-1]].parent:
            files.append(parent)
        return files

    def bases(self) -> set[str]:
        """Digests of the base images that the layers lie on."""
        return {layer.base for layer in self.layers.values() if layer.base}

    def snapshot(self, name: str) -> Snapshot:
        """The snapshot called `name`. Raises `NotFoundError`."""
        for one in self.snapshots:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.snapshots) or "none"
        raise NotFoundError(f"there is no snapshot {name!r}; there is: {known}", snapshot=name)

    def needed(self) -> Record:
        """The record without layers that neither the disk nor a snapshot stands on."""
        kept: set[str] = set()
        for top in (self.top, *(one.layer for one in self.snapshots)):
            kept.update(self.chain(top))
        return self.model_copy(update={"layers": {k: v for k, v in self.layers.items() if k in kept}})

    def mergeable(self) -> tuple[str, str] | None:
        """A layer and the one below it that are one for everybody: the lower has no name and no other
        child.
        """
        named = {one.layer for one in self.snapshots}
        for file, layer in self.layers.items():
            below = layer.parent
            alone = sum(other.parent == below for other in self.layers.values()) == 1
            if below and below not in named and file != self.top and alone:
                return file, below
        return None

    def top_is_on_nameless(self) -> bool:
        """Whether the layer below the top is there for no snapshot, so that it could be merged."""
        below = self.layers[self.top].parent
        named = {one.layer for one in self.snapshots}
        return (
            bool(below)
            and below not in named
            and sum(one.parent == below for one in self.layers.values()) == 1
        )


class DiskFiles:
    """The files of one disk in `directory`. All methods may block on the disk."""

    def __init__(
        self, directory: Path, stem: str, create: CreateOverlay, blob: Callable[[str], Path], base: str = ""
    ) -> None:
        """`create` makes an overlay; `blob` finds a base image; `base`: that of a disk without a record."""
        self.directory = directory
        self.stem = stem
        self._create = create
        self._blob = blob
        self._base = base

    @property
    def record_file(self) -> Path:
        return self.directory / f"{self.stem}.json"

    def exists(self) -> bool:
        """Whether there is such a disk."""
        return self.record_file.exists() or self._first.exists()

    def record(self) -> Record:
        """What is. Raises `NotFoundError`, or `UnavailableError` for a record that cannot be read."""
        try:
            return Record.model_validate_json(self.record_file.read_bytes())
        except FileNotFoundError:
            pass
        except ValidationError as error:
            raise UnavailableError(f"{self.record_file} is damaged: {error}") from error
        try:
            facts = self._first.stat()
            size = overlay_size(self._first)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no disk {self._first}") from error
        only = Layer(size=size, base=self._base)
        return Record(top=self._first.name, layers={self._first.name: only}, created_at=facts.st_ctime)

    def path(self, file: str) -> Path:
        """Where a layer is."""
        return self.directory / file

    def nodes(self, record: Record, top: str = "") -> list[Node]:
        """The image files from `top`, default the disk's, down to the base image."""
        files = record.chain(top)
        nodes = [Node(self.path(file), "qcow2") for file in files]
        base = record.layers[files[-1]].base
        return [*nodes, Node(self._blob(base), "raw")] if base else nodes

    def own(self, record: Record) -> list[str]:
        """The paths of all layers, base images aside."""
        return [str(self.path(file)) for file in record.layers]

    def allocated(self, record: Record) -> int:
        """Bytes that all layers take on the host, base images aside."""
        total = 0
        for file in record.layers:
            with contextlib.suppress(FileNotFoundError):
                total += self.path(file).stat().st_blocks * 512
        return total

    def make(self, size: int, base: str = "") -> None:
        """The disk's first layer. A kill leaves all of it or nothing."""
        blob = self._blob(base) if base else None
        self._make_file(self._first, size, blob, "raw" if base else "")

    def make_recorded(self, size: int, base: str = "") -> None:
        """The same, and a record, by which a disk of its own is known."""
        self.make(size, base)
        layer = Layer(size=size, base=base)
        self.write(Record(top=self._first.name, layers={self._first.name: layer}, created_at=time.time()))

    def push(self, record: Record, size: int = 0, parent: str = "") -> Record:
        """A new, empty top on `parent` (default: the present top), not yet recorded; `size`: 0 for its
        parent's.
        """
        below = parent or record.top
        depth = len(record.chain(below))
        if depth >= LAYERS_MOST:
            raise ConflictError(
                f"the disk has {depth} layers, {LAYERS_MOST} are the most",
                hint="delete snapshots while the machine is stopped: that merges layers",
                layers=depth,
            )
        size = size or record.layers[below].size
        file = self._fresh(record)
        self._make_file(self.path(file), size, self.path(below), "qcow2")
        layers = {**record.layers, file: Layer(size=size, parent=below)}
        return record.model_copy(update={"top": file, "layers": layers})

    def grow(self, size: int) -> None:
        """Have the disk be of at least `size` bytes: a larger layer on top, as nothing else can be torn."""
        record = self.record()
        if size > record.layers[record.top].size:
            self.write(self.push(record, size))

    def write(self, record: Record) -> Record:
        """Make `record` the truth, and remove the files that it does not need."""
        record = record.needed()
        try:
            replace_file(self.record_file, record.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise _failed(self.record_file, error) from error
        self.prune(record)
        return record

    def prune(self, record: Record) -> None:
        """Remove layers that `record` does not have: what a killed command left."""
        for path in list(self._files()):
            if path.name not in record.layers:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the disk. The record goes last, so that a kill leaves something to remove again."""
        for path in list(self._files()):
            path.unlink(missing_ok=True)
        self.record_file.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        yield from self.directory.glob(f"{self.stem}.qcow2*")
        yield from self.directory.glob(f"{self.stem}-*.qcow2*")

    @property
    def _first(self) -> Path:
        return self.directory / f"{self.stem}.qcow2"

    def _fresh(self, record: Record) -> str:
        number = 1
        while (file := f"{self.stem}-{number}.qcow2") in record.layers:
            number += 1
        return file

    def _make_file(self, path: Path, size: int, backing: Path | None, backing_format: str) -> None:
        """It appears whole, under its name, or not at all."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            self._create(str(partial), size, str(backing or ""), backing_format)
            sync(partial)
            partial.rename(path)
            sync(self.directory)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _failed(path, error) from error


def layers_of(nodes: Sequence[Node]) -> tuple[config.Layer, ...]:
    """Image files of ours as the plane is told of them."""
    return tuple(config.Layer(str(node.path), "raw" if node.driver == "raw" else "qcow2") for node in nodes)


def overlay_size(path: Path) -> int:
    """Bytes of the disk in a qcow2 file of ours (docs/interop/qcow2.txt: bytes 24 to 31, big endian)."""
    with path.open("rb") as file:
        file.seek(24)
        return int.from_bytes(file.read(8))


def _failed(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path} cannot be made: {error.strerror or error}",
        hint="free some space on that file system" if error.errno == 28 else "",
        path=str(path),
    )


def replace_by_link(merged: Path, name: Path) -> None:
    """Have `name` mean the file `merged` too, at once; what it was is gone."""
    temporary = name.with_name(f"{name.name}.partial")
    temporary.unlink(missing_ok=True)
    os.link(merged, temporary)
    temporary.rename(name)
    sync(name.parent)
