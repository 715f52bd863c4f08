"""The real parts below the daemon, put together. What is slow to import is imported at its first use."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nagaya.daemon.parts import BaseImage, HostNetworks, Parts
from nagaya.daemon.planelink import PlaneLink
from nagaya.daemon.uids import network_uid, tool_uid
from nagaya.engines.engine import Engine
from nagaya.engines.jailed import Jails
from nagaya.engines.kvm import KvmEngine
from nagaya.engines.select import Engines
from nagaya.engines.uml import UmlEngine
from nagaya.errors import NotFoundError, SpecError, UnavailableError
from nagaya.images.formats import Format
from nagaya.kernel import Kernel
from nagaya.models.image import KernelInfo
from nagaya.paths import MachinePaths, Paths
from nagaya.progress import Progress
from nagaya.resources.pressure import GroupPressure, group_pressure, host_pressure
from nagaya.spec import MachineSpec

if TYPE_CHECKING:
    from nagaya.images.merge import Work
    from nagaya.images.recipe import Recipe
    from nagaya.images.store import Image
    from nagaya.resources.cgroups import Cgroup


def real_parts(paths: Paths) -> Parts:
    """Everything below a daemon of `paths`."""
    jails = Jails(paths)
    uml = UmlEngine(paths, jails)
    engines = Engines(
        uml, KvmEngine(paths, jails, _cpu_runs_guest_kernels), _cpu_runs_guest_kernels, paths.kernels
    )
    plane = PlaneLink(paths)

    async def prepare() -> None:
        await asyncio.gather(jails.prepare(), plane.prepare())

    return Parts(
        engine=engines.select,
        plane=plane,
        images=Images(paths, plane.work),
        kernels=Kernels(paths, engines.select),
        networks=_networks(paths),
        agent=_GuestAgent,
        create_overlay=_create_overlay,
        zygote_pid=lambda: jails.zygote_pid,
        prepare=prepare,
        balance=uml.balance,
        usage=lambda machine_id: _usage(jails.group(machine_id)),
        rank=jails.rank,
        pressure=lambda machine_id: _pressure(jails.group(machine_id)),
        host_pressure=host_pressure,
        group=jails.group,
    )


def _usage(group: Cgroup | None) -> tuple[int | None, int | None]:
    return (None, None) if group is None else (group.usage_us(), group.memory_bytes())


def _pressure(group: Cgroup | None) -> GroupPressure:
    return GroupPressure() if group is None else group_pressure(group)


@functools.cache
def _cpu_runs_guest_kernels() -> bool:
    """Probed once: it takes some milliseconds, and a host does not change while it runs."""
    from nagaya.kvm.probe import probe

    return probe().native


def _networks(paths: Paths) -> HostNetworks:
    from nagaya.networks import host as networks

    host = networks.HostNetworks(paths, network_uid(paths))
    if os.environ.get("NAGAYA_DEFAULT_NETWORK") == "none":
        host.default = ""
    return host


class Images:
    """The image store, as `parts.ImageStore`. `work` does host work on disks."""

    def __init__(self, paths: Paths, work: Work) -> None:
        self._paths = paths
        self._work = work

    def list(self) -> Sequence[BaseImage]:
        """All images, by name."""
        return [_base(image) for image in self._store().all()]

    def resolve(self, name: str) -> BaseImage:
        """The image called `name`."""
        return _base(self._store().resolve(name))

    def blob(self, digest: str) -> Path:
        """Where the content with this digest is."""
        return self._paths.images / f"{digest}.raw"

    def remove(self, name: str, in_use: frozenset[str]) -> None:
        """Remove it, if no machine needs it."""
        self._store().remove(name, in_use)

    def recipe(self, body: Mapping[str, Any]) -> Recipe:
        """Parse a recipe."""
        from pydantic import ValidationError

        from nagaya import validation
        from nagaya.images.recipe import Recipe

        try:
            return Recipe.model_validate(body)
        except ValidationError as error:
            found = validation.problems(error, Recipe)
            raise SpecError("\n".join(f"recipe: {problem}" for problem in found)) from error

    def is_current(self, name: str, recipe: Recipe) -> bool:
        """Whether `name` is there and was built from that recipe."""
        return any(image.name == name and image.recipe == recipe for image in self._store().all())

    async def build(self, name: str, recipe: Recipe, progress: Progress) -> BaseImage:
        """Build it."""
        from nagaya.images.build import build

        return _base(await build(self._paths, name, recipe, progress))

    async def import_file(
        self, name: str, path: Path, image_format: Format | None, progress: Progress
    ) -> BaseImage:
        """Copy the disk in a file into the store."""
        from nagaya.images.importing import import_image
        from nagaya.images.qemuimg import QemuImg

        qemu = QemuImg(tool_uid(self._paths))
        store, work = self._store(), self._work
        return _base(await import_image(store, qemu, name, path, image_format, work=work, progress=progress))

    def _store(self) -> Any:
        from nagaya.images.store import ImageStore

        return ImageStore(self._paths)


class Kernels:
    """The guest kernels, as `parts.KernelStore`."""

    def __init__(self, paths: Paths, engine: Callable[[MachineSpec], Engine]) -> None:
        self._paths = paths
        self._engine = engine

    def list(self) -> Sequence[KernelInfo]:
        """All kernels."""
        from nagaya.images.kernels import default_uml_kernel, list_kernels

        try:
            default = default_uml_kernel(self._paths).name
        except UnavailableError:
            default = ""
        return [_kernel(kernel, kernel.name == default) for kernel in list_kernels(self._paths)]

    def choose(self, spec: MachineSpec) -> Kernel:
        """The one that `spec` names, or the default."""
        from nagaya.images.kernels import default_uml_kernel, find_kernel

        wanted = spec.boot.kernel
        if not wanted and self._engine(spec).name == "kvm":
            return find_kernel(self._paths, "kvm")
        if not wanted:
            return default_uml_kernel(self._paths)
        if not wanted.startswith("/"):
            return find_kernel(self._paths, wanted)
        if not Path(wanted).is_file():
            raise NotFoundError(f"boot.kernel: there is no file {wanted}", field="boot.kernel")
        return Kernel(wanted, wanted, "a file")

    async def build(self, name: str, progress: Progress) -> KernelInfo:
        """Build our own."""
        from nagaya.images.kernels import build_named_kernel

        return _kernel(await build_named_kernel(self._paths, name, progress), name == "uml")


class _GuestAgent:
    """`nagaya.agent.GuestAgent` as `parts.Agent`."""

    def __init__(self, name: str, paths: MachinePaths) -> None:
        from nagaya.agent import GuestAgent

        self._client = GuestAgent(name, paths.agent_socket)

    async def ping(self, seconds: float) -> None:
        await self._client.ping(seconds)

    async def shutdown(self) -> None:
        await self._client.shutdown()

    async def exec(
        self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, seconds: float
    ) -> tuple[int, bytes, bytes, bool]:
        return await self._client.exec(argv, env=env, stdin=stdin, timeout=seconds)

    async def freeze(self) -> int:
        return await self._client.fs_freeze()

    async def thaw(self) -> int:
        return await self._client.fs_thaw()

    async def close(self) -> None:
        await self._client.close()


def _create_overlay(path: str, size: int, backing_path: str, backing_format: str) -> None:
    from nagaya._core import qcow2_create

    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    qcow2_create(path, size, backing_path, backing_format)


def _base(image: Image) -> BaseImage:
    recipe = image.recipe.model_dump(mode="json") if image.recipe else None
    created = datetime.fromisoformat(image.created).timestamp()
    return BaseImage(image.name, image.digest, Path(image.path), image.size, created, image.os, recipe)


def _kernel(kernel: Kernel, default: bool) -> KernelInfo:
    return KernelInfo(kernel.name, kernel.path, kernel.origin, kernel.builtin_virtio, default)
