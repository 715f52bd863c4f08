"""The store of base images: read-only files named by their content, and names that point at them.

images/<sha256>.raw       a base image, mode 0444, sparse; complete from the moment it is there
images/names/<name>.json  what `nagaya image list` shows; replaced atomically
images/work, images/locks builds in progress (workarea.py)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nagaya.errors import ConflictError, NotFoundError, SpecError
from nagaya.images.recipe import Recipe
from nagaya.images.workarea import areas, replace_file, sync
from nagaya.paths import Paths
from nagaya.spec import NAME_PATTERN


class Image(BaseModel):
    """A base image and one of its names."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str  # SHA-256 of the content, hexadecimal
    size: int  # bytes that a guest sees
    path: str
    created: str  # ISO 8601, UTC
    os: str = ""  # for people: "Debian 12 (bookworm)"
    recipe: Recipe | None = None  # None: imported
    recipe_key: str = ""

    @property
    def allocated(self) -> int:
        """Bytes that it takes on the host's disk."""
        return Path(self.path).stat().st_blocks * 512


class ImageStore:
    """All methods may block on the disk: call them from a thread where that matters."""

    def __init__(self, paths: Paths) -> None:
        self._root = paths.images
        self.area, _ = areas(paths)

    def all(self) -> list[Image]:
        """All names, sorted."""
        found = (self._read(path) for path in sorted(self._names.glob("*.json")))
        return [image for image in found if image is not None]

    def resolve(self, name: str) -> Image:
        """The image called `name`. Raises `NotFoundError` that lists what there is."""
        image = self._read(self._entry(name))
        if image is None:
            known = ", ".join(other.name for other in self.all()) or "none"
            raise NotFoundError(
                f"no image is called {name!r}; there is: {known}",
                hint="build one: nagaya image build debian --name NAME, or nagaya image build busybox",
                image=name,
            )
        return image

    def find(self, recipe_key: str) -> Image | None:
        """An image built from the recipe with that key, under any name."""
        return next((image for image in self.all() if image.recipe_key == recipe_key), None)

    def add(
        self, name: str, raw: Path, *, os_name: str = "", recipe: Recipe | None = None, key: str = ""
    ) -> Image:
        """Take `raw`, a file in a work directory, into the store as `name`, which then means this image."""
        entry = self._entry(name)
        raw.chmod(0o444)
        sync(raw)
        digest = _sha256(raw)
        blob = self._root / f"{digest}.raw"
        image = Image(
            name=name,
            digest=digest,
            size=raw.stat().st_size,
            path=str(blob),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            os=os_name,
            recipe=recipe,
            recipe_key=key,
        )
        with self.area.locked("store"):
            if not blob.exists():
                raw.rename(blob)
                sync(self._root)
            self._write(entry, image)
        return image

    def alias(self, image: Image, name: str) -> Image:
        """Another name for `image`."""
        renamed = image.model_copy(update={"name": name})
        with self.area.locked("store"):
            if not Path(image.path).exists():
                raise NotFoundError(f"image {image.name!r} was removed meanwhile", image=image.name)
            self._write(self._entry(name), renamed)
        return renamed

    def require_free(self, name: str) -> None:
        """Raise `ConflictError` if there is an image called `name`, `SpecError` if there never can be."""
        if self._read(self._entry(name)) is not None:
            raise ConflictError(
                f"image {name!r} exists", hint=f"remove it first: nagaya image remove {name}", image=name
            )

    def remove(self, name: str, in_use: Collection[str] = ()) -> None:
        """Forget `name`, and its file if nothing else names it. `in_use`: digests that machines need."""
        with self.area.locked("store"):
            image = self.resolve(name)
            others = [other for other in self.all() if other.digest == image.digest and other.name != name]
            if image.digest in in_use and not others:
                raise ConflictError(
                    f"image {name!r} is the base of a machine's disk",
                    hint="delete the machine first; `nagaya list` shows them",
                    image=name,
                    digest=image.digest,
                )
            self._entry(name).unlink(missing_ok=True)
            sync(self._names)
            if not others:
                Path(image.path).unlink(missing_ok=True)

    def collect(self, in_use: Collection[str] = ()) -> list[str]:
        """Delete files that no name and no machine needs and what killed builds left; returns the digests."""
        self.area.sweep()
        with self.area.locked("store"):
            keep = {image.digest for image in self.all()} | set(in_use)
            dead = [blob for blob in self._root.glob("*.raw") if blob.stem not in keep]
            for blob in dead:
                blob.unlink()
        return [blob.stem for blob in dead]

    @property
    def _names(self) -> Path:
        return self.area.directory("names")

    def _entry(self, name: str) -> Path:
        if not re.fullmatch(NAME_PATTERN, name):
            raise SpecError(
                f"{name!r} is not an image name: lower-case letters, digits and hyphens, 63 at most"
            )
        return self._names / f"{name}.json"

    def _read(self, entry: Path) -> Image | None:
        try:
            body = json.loads(entry.read_text())
        except FileNotFoundError:
            return None
        return Image(path=str(self._root / f"{body['digest']}.raw"), **body)

    def _write(self, entry: Path, image: Image) -> None:
        replace_file(entry, image.model_dump_json(indent=1, exclude={"path"}) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
