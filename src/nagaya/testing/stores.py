"""Images, kernels and guest agents without guests, and all fakes put together."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nagaya._core import qcow2_create
from nagaya.daemon.parts import BaseImage, Parts
from nagaya.errors import ConflictError, NotFoundError, SpecError
from nagaya.images.formats import Format
from nagaya.kernel import Kernel
from nagaya.models.image import KernelInfo
from nagaya.paths import Paths
from nagaya.progress import Progress
from nagaya.spec import MachineSpec
from nagaya.testing.engine import FakeEngine
from nagaya.testing.networks import FakeNetworks
from nagaya.testing.plane import FakePlane

FAKE_KERNEL = Kernel("fake", "/nonexistent", "a fake")


class FakeImages:
    """A store whose images are small files; a recipe is `{"kind": "fake", "seconds": 0.1}`."""

    def __init__(self, paths: Paths) -> None:
        self._directory = paths.images
        self._directory.mkdir(parents=True, exist_ok=True)

    def list(self) -> Sequence[BaseImage]:
        """All images, by name."""
        return [self._image(file) for file in sorted(self._directory.glob("*.json"))]

    def resolve(self, name: str) -> BaseImage:
        """The image called `name`."""
        file = self._directory / f"{name}.json"
        if not file.exists():
            raise NotFoundError(
                f"there is no image {name!r}", hint="`nagaya image list` shows them", image=name
            )
        return self._image(file)

    def blob(self, digest: str) -> Path:
        """Where its content is."""
        return self._directory / f"{digest}.raw"

    def remove(self, name: str, in_use: frozenset[str]) -> None:
        """Remove it unless it is used."""
        if self.resolve(name).digest in in_use:
            raise ConflictError(f"image {name!r} is in use", image=name)
        (self._directory / f"{name}.json").unlink()

    def recipe(self, body: Mapping[str, Any]) -> Any:
        """Only the kind `fake` is known."""
        if body.get("kind") != "fake":
            raise SpecError(f"kind: {body.get('kind')!r} is not one of 'fake'", field="kind")
        return dict(body)

    def is_current(self, name: str, recipe: Any) -> bool:
        """Whether it was built by that recipe."""
        return any(image.name == name and image.recipe == recipe for image in self.list())

    async def build(self, name: str, recipe: Any, progress: Progress) -> BaseImage:
        """Take a little while over nothing."""
        for step in range(4):
            progress(f"step {step + 1}", step / 4)
            await asyncio.sleep(float(recipe.get("seconds", 0.0)) / 4)
        content = json.dumps(recipe, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()
        with self.blob(digest).open("wb") as file:
            file.write(content)
            file.truncate(2**20)
        (self._directory / f"{name}.json").write_text(json.dumps({"digest": digest, "recipe": recipe}))
        return self.resolve(name)

    async def import_file(
        self, name: str, path: Path, image_format: Format | None, progress: Progress
    ) -> BaseImage:
        """Remember where it came from."""
        _require_file(path)
        return await self.build(name, {"kind": "fake", "imported": str(path)}, progress)

    def _image(self, file: Path) -> BaseImage:
        entry = json.loads(file.read_text())
        blob = self.blob(entry["digest"])
        return BaseImage(file.stem, entry["digest"], blob, 2**20, 0.0, "fake", entry["recipe"])


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")


class FakeKernels:
    """One kernel that boots nothing."""

    def list(self) -> Sequence[KernelInfo]:
        """The one."""
        return [KernelInfo(FAKE_KERNEL.name, FAKE_KERNEL.path, FAKE_KERNEL.origin, True, True)]

    def choose(self, spec: MachineSpec) -> Kernel:
        """The one, or an error for any other name."""
        if spec.boot.kernel not in ("", FAKE_KERNEL.name):
            raise NotFoundError(f"there is no kernel {spec.boot.kernel!r}", kernel=spec.boot.kernel)
        return FAKE_KERNEL

    async def build(self, name: str, progress: Progress) -> KernelInfo:
        """Nothing to do."""
        progress("compile", 0.5)
        return self.list()[0]


class FakeAgent:
    """Runs nothing: `echo` prints its arguments, `cat` its input, `false` fails. It does not shut down."""

    async def ping(self, seconds: float) -> None:
        """It answers."""

    async def shutdown(self) -> None:
        """Leave it to the power button."""
        raise ConflictError("the fake agent does not shut down")

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> tuple[int, bytes, bytes, bool]:
        """See the class."""
        match list(argv):
            case ["echo", *words]:
                return 0, " ".join(words).encode() + b"\n", b"", False
            case ["cat"]:
                return 0, stdin, b"", False
            case ["env"]:
                return 0, "".join(f"{key}={value}\n" for key, value in env.items()).encode(), b"", False
            case ["false"]:
                return 1, b"", b"", False
            case _:
                return 127, b"", f"{argv[0]}: not found\n".encode(), False

    async def freeze(self) -> int:
        """One file system."""
        return 1

    async def thaw(self) -> int:
        """The same."""
        return 1

    async def close(self) -> None:
        """Nothing is open."""


def fake_parts(paths: Paths) -> Parts:
    """Everything below the daemon, faked."""
    engine = FakeEngine()

    async def prepare() -> None:
        """There is nothing to prepare."""

    return Parts(
        engine=lambda _spec: engine,
        plane=FakePlane(paths),
        images=FakeImages(paths),
        kernels=FakeKernels(),
        networks=FakeNetworks(paths),
        agent=lambda _name, _paths: FakeAgent(),
        create_overlay=qcow2_create,
        zygote_pid=lambda: None,
        prepare=prepare,
    )
