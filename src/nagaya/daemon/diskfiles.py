"""Which files a machine's disks have, and who works on them: what the launcher and `disks` share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nagaya.daemon.parts import Parts
from nagaya.daemon.state import MachineRow
from nagaya.errors import ConflictError, NagayaError, NotFoundError, SpecError
from nagaya.images.chain import DiskFiles
from nagaya.images.qemuimg import Node
from nagaya.paths import Paths
from nagaya.spec import NAME_PATTERN, Disk, MachineSpec
from nagaya.units import human_size

STEM = "disk"  # of a disk with a name of its own


@dataclass(slots=True)
class DiskCatalog:
    """All disks of this daemon."""

    paths: Paths
    parts: Parts
    _claims: dict[str, tuple[str, bool]] = field(default_factory=dict)  # what works on a disk, and gently

    def own(self, row: MachineRow, index: int) -> DiskFiles:
        """The overlay of disk `index` of a machine."""
        directory = self.paths.machine(row.id).state
        base = row.images[index] if index < len(row.images) else ""
        return self._files(directory, f"disk{index}", base)

    def named(self, name: str) -> DiskFiles:
        """The disk called `name`. Raises `NotFoundError`."""
        if not re.match(NAME_PATTERN, name) or not self.files_of(name).exists():
            known = ", ".join(self.names()) or "none"
            raise NotFoundError(
                f"there is no disk {name!r}; there is: {known}",
                hint=f"make it: nagaya disk create {name} SIZE; a machine's own are called MACHINE/disk0",
                disk=name,
            )
        return self.files_of(name)

    def files_of(self, name: str) -> DiskFiles:
        """Where the disk called `name` is, or would be."""
        return self._files(self.paths.disks / name, STEM, "")

    def names(self) -> list[str]:
        """The disks with a name of their own."""
        return sorted(record.parent.name for record in self.paths.disks.glob(f"*/{STEM}.json"))

    def nodes(self, row: MachineRow, index: int, disk: Disk) -> list[Node]:
        """The image files of a machine's disk, top first."""
        if disk.path:
            return [Node(Path(disk.path), "raw")]
        if not disk.disk and not has_overlay(disk):
            return [Node(self.parts.images.blob(row.images[index]), "raw")]
        files = self.named(disk.disk) if disk.disk else self.own(row, index)
        return files.nodes(files.record())

    def bases(self, row: MachineRow, spec: MachineSpec) -> set[str]:
        """Digests of the base images that a machine's own disks lie on."""
        found: set[str] = set()
        for index, disk in enumerate(spec.disks):
            files = self.own(row, index)
            if has_overlay(disk) and files.record_file.exists():
                found |= _bases(files)
            else:
                found.add(row.images[index])
        return found - {""}

    def bases_of_named(self) -> dict[str, set[str]]:
        """The same for each disk with a name of its own."""
        return {name: _bases(self.files_of(name)) for name in self.names()}

    # -- who works on what

    @contextlib.contextmanager
    def claim(self, key: str, work: str, *, starts: bool = False) -> Iterator[None]:
        """Nothing else works on the disk meanwhile, and no machine starts on it unless `starts`."""
        self.require_free([key])
        self._claims[key] = (work, starts)
        try:
            yield
        finally:
            del self._claims[key]

    def require_free(self, keys: list[str], *, to_start: bool = False) -> None:
        """Raise `ConflictError` that says what works on one of the disks and is in the way."""
        for key in keys:
            work, starts = self._claims.get(key, ("", True))
            if work and not (to_start and starts):
                raise ConflictError(
                    f"disk {key} is busy: {work}",
                    hint="`nagaya operation list` shows the job; wait for it, or cancel it",
                    disk=key,
                )

    def work_on(self, key: str) -> str:
        """What works on a disk, "" for nothing."""
        return self._claims.get(key, ("", True))[0]

    def _files(self, directory: Path, stem: str, base: str) -> DiskFiles:
        return DiskFiles(directory, stem, self.parts.create_overlay, self.parts.images.blob, base)


def has_overlay(disk: Disk) -> bool:
    """Whether it is a disk that the machine owns. A raw file is used as it is, and so is an image only
    read.
    """
    return not disk.path and not disk.disk and not (disk.image and disk.read_only and disk.size is None)


def keeps_content(old: Disk, new: Disk, field_name: str) -> bool:
    """Whether a disk whose entry becomes `new` stays the same; it may grow. Raises `SpecError` to shrink."""
    if (old.image, old.path, old.disk) != (new.image, new.path, new.disk):
        return False
    if old.size is not None and new.size is not None and new.size < old.size:
        raise SpecError(
            f"{field_name}.size: {human_size(new.size)} is less than the {human_size(old.size)} that it has",
            hint="a disk cannot shrink, its content would be cut; delete the machine, or say at least that",
            field=f"{field_name}.size",
        )
    return True


def keys(row: MachineRow, spec: MachineSpec) -> list[str]:
    """By what names the disks of a machine are claimed."""
    return [disk.disk or f"{row.name}/disk{index}" for index, disk in enumerate(spec.disks)]


def _bases(files: DiskFiles) -> set[str]:
    try:
        return files.record().bases()
    except NagayaError:  # damaged: the commands on this disk say so
        return set()
