"""`/v1/images` and `/v1/kernels`."""

from __future__ import annotations

import asyncio
import pathlib
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from nagaya.daemon.daemon import Daemon
from nagaya.errors import UsageError
from nagaya.images.formats import Format
from nagaya.models.image import ImageInfo, KernelInfo
from nagaya.models.operation import OperationInfo
from nagaya.progress import Progress
from nagaya.spec import Name


class BuildBody(BaseModel):
    """An image to build."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    recipe: Annotated[dict[str, Any], Field(description="docs/images.md, Recipes")]


class ImportBody(BaseModel):
    """An image file on the daemon's host."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    path: Annotated[str, Field(description="absolute path", max_length=4096)]
    format: Annotated[Format | None, Field(description="left out: its header tells")] = None


class KernelBody(BaseModel):
    """A kernel to build."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["uml", "kvm"] = "uml"


def router(daemon: Daemon) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["images"])
    images, kernels = daemon.parts.images, daemon.parts.kernels

    @routes.get("/images")
    async def list_images() -> list[ImageInfo]:
        """The images in the store, by name."""
        return [daemon.image(image) for image in await asyncio.to_thread(images.list)]

    @routes.post("/images/build", status_code=202)
    async def build(body: BuildBody) -> OperationInfo:
        """Build an image; the operation's result is the image."""
        recipe = images.recipe(body.recipe)

        async def work(progress: Progress) -> dict[str, Any]:
            return asdict(daemon.image(await images.build(body.name, recipe, progress)))

        return await daemon.operations.start("image build", body.name, work)

    @routes.post("/images/import", status_code=202)
    async def import_file(body: ImportBody) -> OperationInfo:
        """Copy the disk in an image file into the store; the operation's result is the image."""
        path = pathlib.PurePosixPath(body.path)
        if not path.is_absolute() or "\0" in body.path:
            raise UsageError(f"path: {body.path!r} is not an absolute path", field="path")

        async def work(progress: Progress) -> dict[str, Any]:
            made = await images.import_file(body.name, pathlib.Path(path), body.format, progress)
            return asdict(daemon.image(made))

        return await daemon.operations.start("image import", body.name, work)

    @routes.delete("/images/{name}", status_code=204)
    async def remove(name: Annotated[str, Path(max_length=64)]) -> None:
        """Remove an image that no machine uses."""
        in_use = frozenset(daemon.supervisor.images_in_use())
        await asyncio.to_thread(images.remove, name, in_use)

    @routes.get("/kernels")
    async def list_kernels() -> list[KernelInfo]:
        """The guest kernels that are there."""
        return list(await asyncio.to_thread(kernels.list))

    @routes.post("/kernels/build", status_code=202)
    async def build_kernel(body: KernelBody | None = None) -> OperationInfo:
        """Build our kernel for one of the engines."""
        name = KernelBody().name if body is None else body.name

        async def work(progress: Progress) -> dict[str, Any]:
            return asdict(await kernels.build(name, progress))

        return await daemon.operations.start("kernel build", name, work)

    return routes
