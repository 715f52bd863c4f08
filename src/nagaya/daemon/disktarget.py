"""A disk that a command works on, wherever it comes from: with a name, a machine's own, or a raw file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nagaya.daemon.parts import ImageStore
from nagaya.daemon.supervised import DOWN, Supervised
from nagaya.errors import ConflictError, NotFoundError, UnsupportedError
from nagaya.images.chain import DiskFiles, Record, Snapshot
from nagaya.images.qemuimg import Node
from nagaya.models.disk import DiskInfo


@dataclass(frozen=True, slots=True)
class Target:
    """A disk that a command works on."""

    key: str
    users: tuple[Supervised, ...]  # machines whose spec has it
    files: DiskFiles | None = None  # None: a raw file, or an image that is only read
    node: Node | None = None  # that file
    index: int = 0  # of a machine's own disk

    def require_files(self, verb: str) -> DiskFiles:
        """Its layers. Raises `UnsupportedError` for a disk that has none."""
        if self.files is None:
            raise UnsupportedError(
                f"disk {self.key} is one raw file, it cannot be {verb}",
                hint="make an image of it: nagaya image import NAME FILE, and a disk on that",
                disk=self.key,
            )
        return self.files

    def require_rest(self) -> None:
        """Raise `ConflictError` unless all machines that have it are down."""
        for one in self.users:
            if one.row.state not in DOWN:
                raise ConflictError(
                    f"disk {self.key} is in use: {one.name} is {one.row.state}",
                    hint=f"nagaya stop {one.name}; or take a snapshot, which can be read meanwhile",
                    disk=self.key,
                    machine=one.name,
                )

    def source(self, snapshot: str) -> tuple[Sequence[Node], int, bool]:
        """Image files to read from, the disk's size, and whether nobody may write to it meanwhile.

        Raises `NotFoundError` if it has no such snapshot.
        """
        if self.files is None:
            if self.node is None or snapshot:
                raise NotFoundError(f"disk {self.key} has no snapshots", disk=self.key)
            return [self.node], self.node.path.stat().st_size, True
        record = self.files.record()
        top = record.snapshot(snapshot).layer if snapshot else record.top
        return self.files.nodes(record, top), record.layers[top].size, not snapshot


def describe(target: Target, work: str, images: ImageStore) -> DiskInfo:
    """What the API says of a disk; `work` is what is being done with it, "" for nothing."""
    running = any(one.row.state not in DOWN for one in target.users)
    state = work or ("in use" if running else "free")
    users = [one.name for one in target.users]
    if target.files is None:
        path = target.node.path if target.node else Path()
        facts = path.stat()
        return DiskInfo(
            target.key,
            "raw",
            facts.st_size,
            facts.st_blocks * 512,
            1,
            "",
            [],
            users,
            state,
            str(path),
            facts.st_ctime,
        )
    record = target.files.record()
    names = {image.digest: image.name for image in images.list()}
    base = record.layers[record.chain()[-1]].base
    return DiskInfo(
        name=target.key,
        format="qcow2",
        size=record.layers[record.top].size,
        allocated=target.files.allocated(record),
        layers=len(record.chain()),
        image=names.get(base, base),
        snapshots=[_snapshot(one, record) for one in record.snapshots],
        used_by=users,
        state=state,
        path=str(target.files.path(record.top)),
        created_at=record.created_at,
    )


def _snapshot(one: Snapshot, record: Record) -> dict[str, Any]:
    return {
        "name": one.name,
        "created_at": one.created_at,
        "consistency": one.consistency,
        "size": record.layers[one.layer].size,
    }
