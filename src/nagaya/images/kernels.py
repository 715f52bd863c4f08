"""Guest kernels: what there is, and which one a machine gets.

kernels/uml              link to the newest build; kernels/kvm likewise
kernels/uml-<key>/       vmlinux, config, meta.json
kernels/uml-debian/      the initial RAM disk that Debian's kernel needs
"""

from __future__ import annotations

import json
from pathlib import Path

from nagaya.errors import NotFoundError, UnavailableError, UsageError
from nagaya.images.initramfs import write_module_loader
from nagaya.images.kernel_build import KVM, KVM_NAME, UML, UML_NAME, Flavour, build_kernel
from nagaya.images.tools import in_thread
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.progress import Progress

DEBIAN_NAME = "uml-debian"
_DEBIAN_KERNEL = Path("/usr/bin/linux.uml")
_DEBIAN_MODULES = Path("/usr/lib/uml/modules")
_BUILD_HINT = "build one: nagaya kernel build {}"


async def build_uml_kernel(paths: Paths, progress: Progress, *, rebuild: bool = False) -> Kernel:
    """Build User-mode Linux from Debian's source, about three minutes; at once if it was built before.

    Raises `BuildError`, `ResourceError`, or `UnavailableError` naming the Debian package that is missing.
    """
    return await _build(UML, paths, progress, rebuild)


async def build_named_kernel(paths: Paths, name: str, progress: Progress) -> Kernel:
    """Build the kernel called `name`. Raises `UsageError` if we cannot build such a one."""
    for flavour in (UML, KVM):
        if flavour.name == name:
            return await _build(flavour, paths, progress, False)
    raise UsageError(f"kernel {name!r} cannot be built here, only {UML_NAME} and {KVM_NAME}", kernel=name)


async def build_kvm_kernel(paths: Paths, progress: Progress, *, rebuild: bool = False) -> Kernel:
    """Build Linux for the kvm engine from Debian's source, about six minutes; at once if it is there.

    Raises as `build_uml_kernel` does.
    """
    return await _build(KVM, paths, progress, rebuild)


async def _build(flavour: Flavour, paths: Paths, progress: Progress, rebuild: bool) -> Kernel:
    await in_thread(lambda runner: build_kernel(flavour, paths, progress, runner, rebuild=rebuild))
    return find_kernel(paths, flavour.name)


def list_kernels(paths: Paths) -> list[Kernel]:
    """Our kernels that were built, then Debian's if its package is installed."""
    kernels = []
    for name in (UML_NAME, KVM_NAME):
        meta = paths.kernels / name / "meta.json"
        if meta.exists():
            kernels.append(_built(name, meta.resolve()))
    modules = sorted(_DEBIAN_MODULES.iterdir()) if _DEBIAN_MODULES.is_dir() else []
    if _DEBIAN_KERNEL.exists() and modules:
        kernels.append(_debian(paths, modules[-1]))
    return kernels


def find_kernel(paths: Paths, name: str) -> Kernel:
    """The kernel called `name`. Raises `NotFoundError` that lists what there is."""
    kernels = list_kernels(paths)
    for kernel in kernels:
        if kernel.name == name:
            return kernel
    hint = _BUILD_HINT.format(KVM_NAME if name == KVM_NAME else UML_NAME)
    known = ", ".join(kernel.name for kernel in kernels) or "none"
    raise NotFoundError(f"no kernel is called {name!r}; there is: {known}", hint=hint, kernel=name)


def default_uml_kernel(paths: Paths) -> Kernel:
    """Ours if built, else Debian's where it can run. Raises `UnavailableError` that says what to do."""
    kernels = [kernel for kernel in list_kernels(paths) if kernel.name in (UML_NAME, DEBIAN_NAME)]
    hint = _BUILD_HINT.format(UML_NAME)
    if not kernels:
        raise UnavailableError(
            "there is no User-mode Linux kernel", hint=f"{hint}; or apt-get install user-mode-linux"
        )
    if kernels[0].name == DEBIAN_NAME and (reason := debian_obstacle()):
        raise UnavailableError(f"Debian's User-mode Linux does not run on this host: {reason}", hint=hint)
    return kernels[0]


def debian_obstacle(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Why Debian's kernel cannot run on this host; empty if it can.

    It writes the registers of a guest process with PTRACE_SETREGSET and a fixed size of 2696 bytes, which
    Linux refuses (EFAULT) where the processor's state is larger. Only AMX makes it larger (11008 bytes).
    """
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    if "amx_tile" in flags.split():
        return "its CPU has AMX, whose registers that kernel cannot save (ours can)"
    return ""


def _built(name: str, meta: Path) -> Kernel:
    body = json.loads(meta.read_text())
    return Kernel(
        name=name,
        path=str(meta.parent / "vmlinux"),
        origin=body["origin"],
        cmdline=body["cmdline"],
    )


def _debian(paths: Paths, modules: Path) -> Kernel:
    initrd = paths.kernels / DEBIAN_NAME / f"initrd-{modules.name}"
    if not initrd.exists():
        initrd.parent.mkdir(parents=True, exist_ok=True)
        write_module_loader(initrd, modules)
    return Kernel(
        name=DEBIAN_NAME,
        path=str(_DEBIAN_KERNEL),
        origin=f"package user-mode-linux, Linux {modules.name}",
        builtin_virtio=False,
        initrd=str(initrd),
    )
