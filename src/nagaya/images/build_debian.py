"""The `debian` image: a small Debian with systemd, the guest agent and the packages of the recipe.

A minimal system is made once by mmdebstrap and kept as an archive in the cache; an image unpacks it and
adds to it. Downloaded packages are kept too.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import PermissionDeniedError
from nagaya.images.apt import acquire_options, mirror_lines
from nagaya.images.ext4 import make_ext4
from nagaya.images.recipe import Recipe
from nagaya.images.tools import Runner, find_tool
from nagaya.images.workarea import WorkArea
from nagaya.paths import Paths
from nagaya.progress import Progress

_DATA = Path(__file__).parent / "data"
_TOOLS = ("mmdebstrap", "unshare", "setpriv", "tar", "mke2fs", "debugfs", "apt-config", "sh")
_BASE = (
    *(
        "systemd-sysv",
        "udev",
        "dbus",
        "kmod",
        "login",
        "iproute2",
        "iputils-ping",
        "procps",
        "netbase",
        "less",
    ),
    *("ca-certificates", "qemu-guest-agent", "openssh-server", "systemd-resolved"),
)
_PACK = _DATA / "debian-base.sh"
_KEEP_ATTRIBUTES = (
    "--acls",
    "--xattrs",
    "--xattrs-include=*",
)  # tar alone drops file capabilities, as ping's
_BASE_MAX_AGE_S = 7 * 86400  # then it is made again: security updates
_MINIMAL_STEPS = {
    "running apt-get update": 0.02,
    "downloading packages with apt": 0.05,
    "extracting archives": 0.1,
    "installing essential packages": 0.12,
    "installing remaining packages inside the chroot": 0.22,
}
_CONFIGURE_STEPS = {
    "read the package lists": 0.4,
    "install packages": 0.45,
    "configure": 0.75,
    "run the recipe's commands": 0.8,
    "clean up": 0.85,
}
_ACCOUNT_EPOCH = "1672531200"  # the day on which accounts' passwords were last changed, in place of today


def debian_inputs() -> tuple[str, ...]:
    """Digest of our files that decide how the image looks. Raises `UnavailableError` if a tool is missing."""
    for tool in _TOOLS:
        find_tool(tool)
    files = [*_DATA.glob("debian*.sh"), *(path for path in (_DATA / "debian").rglob("*") if path.is_file())]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files))


def build_debian(
    paths: Paths, recipe: Recipe, runner: Runner, progress: Progress, *, fresh: bool
) -> tuple[Path, str]:
    """Make the image in the work directory; `fresh` makes the minimal system again.

    Returns the image's path and the system's name for people.
    """
    if os.geteuid() != 0:
        raise PermissionDeniedError(
            "building a Debian image needs root: it makes device nodes and files of other owners",
            hint="let a daemon that runs as root build it: sudo nagaya image build debian",
        )
    build = _Build(WorkArea(paths.cache / "debian"), recipe, runner, progress)
    build.unpack_minimal(fresh)
    epoch = build.configure()
    progress("write the file system", 0.9)
    image = runner.work.path / "image.raw"
    make_ext4(runner, build.root, image, size=recipe.bytes, label="debian", epoch=epoch, journal=True)
    return image, _pretty_name(build.root)


@dataclass(frozen=True, slots=True)
class _Build:
    cache: WorkArea
    recipe: Recipe
    runner: Runner
    progress: Progress

    @property
    def root(self) -> Path:
        return self.runner.work.path / "root"

    def unpack_minimal(self, fresh: bool) -> None:
        """Fill `root` with the minimal system, from the cache if it is there and not old."""
        suite, mirrors = self.recipe.suite, mirror_lines(self.recipe.suite)
        key = hashlib.sha256(repr((suite, mirrors, _BASE, _PACK.read_text())).encode()).hexdigest()[:16]
        archive = self.cache.directory("base") / f"{suite}-{key}.tar"

        def waiting() -> None:
            self.runner.check()
            self.progress("wait for another build of the minimal system", None)

        with self.cache.locked(f"base-{key}", waiting):
            if fresh or not archive.exists() or time.time() - archive.stat().st_mtime > _BASE_MAX_AGE_S:
                self._make_minimal(mirrors, archive)
        step = "unpack the minimal system"
        self.progress(step, 0.35)
        self.root.mkdir()
        self.runner.run(step, ["tar", "-C", self.root, "--numeric-owner", *_KEEP_ATTRIBUTES, "-xpf", archive])

    def configure(self) -> int:
        """Add the recipe's packages and our files, run its commands; the newest package file's time."""
        epoch_file = self.runner.work.path / "epoch"
        packages = self.cache.directory(f"packages-{self.recipe.suite}")
        name = self.recipe.hostname or self.recipe.kind
        command: list[str | Path] = [
            *(
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
                "-eu",
            ),
            *(_DATA / "debian.sh", self.root, packages, _DATA / "debian", name, self._apt_options()),
            *sorted(set(self.recipe.packages)),
        ]
        self.runner.run(
            "configure the system",
            command,
            env={
                "RUN": "\n".join(self.recipe.run),
                "EPOCH_FILE": str(epoch_file),
                "SOURCE_DATE_EPOCH": _ACCOUNT_EPOCH,
            },
            on_line=self._steps("step: ", _CONFIGURE_STEPS),
        )
        return int(epoch_file.read_text())

    def _make_minimal(self, mirrors: list[str], archive: Path) -> None:
        start = int(time.time())
        step = "make a minimal Debian"
        self.progress(step, 0.0)
        command: list[str | Path] = [
            *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"),
            *(f"--include={','.join(_BASE)}", f"--aptopt={self._apt_options()}"),
            "--customize-hook=rm -f $1/etc/apt/apt.conf.d/99mmdebstrap",
            self.recipe.suite,
            self.root,
            *mirrors,
        ]
        self.runner.run(
            step,
            command,
            env={"SOURCE_DATE_EPOCH": _ACCOUNT_EPOCH},
            on_line=self._steps("I: ", _MINIMAL_STEPS),
        )
        step = "keep the minimal system"
        self.progress(step, 0.3)
        half = archive.with_suffix(".new")  # whoever holds the lock may overwrite what a killed build left
        self.runner.run(step, ["sh", "-eu", _PACK, self.root, half, str(start)])
        half.replace(archive)
        # Unpacked like all later ones: what tar does not keep then differs from none of them.
        self.runner.run(step, ["rm", "-rf", self.root])

    def _apt_options(self) -> Path:
        options = self.runner.work.path / "apt.conf"
        options.write_text("".join(f"{line}\n" for line in acquire_options()))
        return options

    def _steps(self, prefix: str, fractions: dict[str, float]) -> Callable[[bytes], None]:
        """Turn the lines with which a program announces its steps into progress."""

        def follow(line: bytes) -> None:
            text = line.decode(errors="replace").strip(" .\n")
            step = text.removeprefix(prefix)
            if text.startswith(prefix) and step in fractions:
                self.progress(step, fractions[step])

        return follow


def _pretty_name(root: Path) -> str:
    for line in (root / "etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.removeprefix("PRETTY_NAME=").strip('"')
    return "Debian"
