"""Building images: one build for each recipe at a time, nothing half-made, nothing made twice."""

from __future__ import annotations

import errno

from nagaya.errors import ResourceError
from nagaya.images.build_busybox import build_busybox, busybox_inputs
from nagaya.images.build_debian import build_debian, debian_inputs
from nagaya.images.recipe import Recipe
from nagaya.images.store import Image, ImageStore
from nagaya.images.tools import Runner, in_thread
from nagaya.paths import Paths
from nagaya.progress import Progress

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


async def build(
    paths: Paths, name: str, recipe: Recipe, progress: Progress, *, rebuild: bool = False
) -> Image:
    """Make the image that `recipe` describes and call it `name`.

    What an equal recipe made before is used again, unless `rebuild`. Cancelling ends the build and leaves
    nothing. Raises `BuildError` with the step and the end of its log, `ResourceError` on a full disk,
    `UnavailableError` naming the Debian package that is missing, `PermissionDeniedError` without the rights
    that a build needs.
    """
    return await in_thread(
        lambda runner: _build(paths, name, recipe, runner, progress=progress, rebuild=rebuild)
    )


def _build(
    paths: Paths, name: str, recipe: Recipe, runner: Runner, *, progress: Progress, rebuild: bool
) -> Image:
    store = ImageStore(paths)
    key = recipe.key(*(busybox_inputs() if recipe.kind == "busybox" else debian_inputs()))

    def waiting() -> None:
        runner.check()
        progress("wait for another build of the same image", None)

    try:
        with store.area.locked(f"build-{key}", waiting):
            made = None if rebuild else store.find(key)
            if made is not None:
                return made if made.name == name else store.alias(made, name)
            with store.area.work() as work:
                runner.work = work
                raw, os_name = (
                    build_busybox(recipe, runner, progress)
                    if recipe.kind == "busybox"
                    else build_debian(paths, recipe, runner, progress, fresh=rebuild)
                )
                progress("store the image", 0.95)
                image = store.add(name, raw, os_name=os_name, recipe=recipe, key=key)
                progress("done", 1.0)
                return image
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise ResourceError(
                f"the disk is full at {paths.images}", hint="free some space and build again"
            ) from error
        raise
