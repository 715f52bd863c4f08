"""The `busybox` image: BusyBox, a small init and the guest agent, nothing else."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from nagaya.images.ext4 import make_ext4
from nagaya.images.recipe import Recipe
from nagaya.images.tools import Runner, find_tool, missing
from nagaya.progress import Progress

_TREE = Path(__file__).parent / "data" / "busybox"
_DIRECTORIES = (
    *("bin", "dev", "etc/init.d", "etc/rc.d", "mnt", "proc", "root", "run", "sbin", "sys", "tmp"),
    *("usr/bin", "usr/lib", "usr/sbin", "var/log"),
)
_LINKS = {
    "etc/hosts": "/run/hosts",
    "etc/mtab": "/proc/mounts",
    "etc/resolv.conf": "/run/resolv.conf",
    "lib": "usr/lib",
    "lib64": "usr/lib",
    "var/run": "/run",
}
_PROGRAMS = ("bin", "sbin", "init.d", "udhcpc")
_EPOCH = 1_672_531_200  # 2023-01-01: any fixed time will do
_LDD_LINE = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


def busybox_inputs() -> tuple[str, ...]:
    """Digests of the host's files that go into the image. Raises `UnavailableError` if one is missing."""
    files = [_static_busybox(), *_agent_files().values(), *sorted(p for p in _TREE.rglob("*") if p.is_file())]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def build_busybox(recipe: Recipe, runner: Runner, progress: Progress) -> tuple[Path, str]:
    """Make the image in the work directory. Returns its path and the system's name for people."""
    root, image = runner.work.path / "root", runner.work.path / "image.raw"
    progress("gather the files", 0.1)
    for directory in _DIRECTORIES:
        (root / directory).mkdir(parents=True, exist_ok=True)
    shutil.copytree(_TREE, root, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for link, target in _LINKS.items():
        (root / link).symlink_to(target)
    (root / "etc/hostname").write_text(f"{recipe.hostname or recipe.kind}\n")
    _install_busybox(root)
    for inside, host in _agent_files().items():
        shutil.copyfile(host, root / inside)
    _settle(root)
    progress("write the file system", 0.3)
    make_ext4(
        runner, root, image, size=recipe.bytes, label="busybox", epoch=_EPOCH, journal=False, all_root=True
    )
    return image, "BusyBox"


def _install_busybox(root: Path) -> None:
    program = _static_busybox()
    shutil.copyfile(program, root / "bin/busybox")
    listing = subprocess.run([program, "--list-full"], capture_output=True, check=True, text=True)
    for applet in listing.stdout.split():
        link = root / applet
        if not link.exists() and link.parent.is_dir():
            link.symlink_to("/bin/busybox")


def _settle(root: Path) -> None:
    """Modes and times that do not depend on the host's umask or clock."""
    for path in sorted(root.rglob("*"), reverse=True):
        if not path.is_symlink():
            relative = path.relative_to(root)
            runs = path.is_dir() or relative.parent.name in _PROGRAMS or path.name.startswith("ld-linux")
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    os.utime(root, (_EPOCH, _EPOCH))


def _static_busybox() -> Path:
    program = find_tool("busybox").resolve()
    if "not a dynamic executable" not in _ldd(program):
        raise missing("a static busybox", "busybox-static")
    return program


def _agent_files() -> dict[str, Path]:
    """The guest agent and its libraries: path in the image to path on the host."""
    program = find_tool("qemu-ga").resolve()
    libraries = _LDD_LINE.findall(_ldd(program))
    return {
        "usr/sbin/qemu-ga": program,
        **{f"usr/lib/{Path(lib).name}": Path(lib).resolve() for lib in libraries},
    }


def _ldd(program: Path) -> str:
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    return done.stdout + done.stderr
