"""Building our own kernels from Debian's source: User-mode Linux, and Linux for the kvm engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nagaya.errors import BuildError
from nagaya.images.initramfs import BOOT_MARKER, write_boot_test
from nagaya.images.tools import Runner, find_tool, missing
from nagaya.images.workarea import areas, sync
from nagaya.paths import Paths
from nagaya.progress import Progress

UML_NAME = "uml"
KVM_NAME = "kvm"
_SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")
_PACKAGE = "linux-source-6.1"
_LIBELF = (Path("/usr/include/libelf.h"), "libelf-dev")  # for objtool, which retpolines need
_DATA = Path(__file__).parent / "data"
_TOOLS = ("tar", "xz", "make", "gcc", "flex", "bison", "bc", "perl", "setpriv")
_BOOTS = 3
_BOOT_LIMIT_S = 60
_LPJ = re.compile(r"\(lpj=(\d+)\)")
# The same kernel from the same source and compiler, whoever builds it, wherever and whenever.
_FIXED = {
    "KBUILD_BUILD_TIMESTAMP": "@0",
    "KBUILD_BUILD_USER": "nagaya",
    "KBUILD_BUILD_HOST": "nagaya",
    "KBUILD_BUILD_VERSION": "1",
    "LOCALVERSION": "",
}


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kernel that can be built: kernels/<name>."""

    name: str
    arch: str  # of make
    target: str  # what make builds: a file in the build's directory
    config: str  # in data/
    patch: str  # in data/; empty: the source as it is
    tools: tuple[str, ...]
    needs: tuple[tuple[Path, str], ...]  # other files, and the packages that have them
    objects: int  # files that a build compiles, for the progress only
    trial: Callable[[Path, Path], str]  # (work directory, kernel): what it wants on its command line


def build_kernel(
    flavour: Flavour, paths: Paths, progress: Progress, runner: Runner, *, rebuild: bool
) -> None:
    """Build it and make it kernels/<name>. Nothing to do if that is what is there, unless `rebuild`."""
    for tool in flavour.tools:
        find_tool(tool)
    for file, package in ((_SOURCE, _PACKAGE), *flavour.needs):
        if not file.exists():
            raise missing(str(file), package)
    version = _package_version()
    key = _key(flavour, version)
    _, area = areas(paths)
    built = area.directory("built") / key[:12]

    def waiting() -> None:
        runner.check()
        progress("wait for another build of the kernel", None)

    with area.locked(flavour.name, waiting):
        if rebuild or not (built / "meta.json").exists():
            with area.work() as work:
                runner.work = work
                files = _compile(flavour, work.path, progress, runner)
                progress("try it", 0.95)
                cmdline = flavour.trial(work.path, files["vmlinux"])
                meta = {"origin": f"built from {_PACKAGE} {version}", "key": key, "cmdline": cmdline}
                _publish(built, files, meta)
        installed = paths.kernels / f"{flavour.name}-{key[:12]}"
        if not installed.exists() or rebuild:
            files = {name: built / name for name in ("vmlinux", "config")}
            _publish(installed, files, json.loads((built / "meta.json").read_text()))
        _switch(paths.kernels, flavour.name, installed)
    progress("done", 1.0)


def _key(flavour: Flavour, version: str) -> str:
    compiler = subprocess.run(
        ["gcc", "--version"], capture_output=True, check=True, text=True
    ).stdout.splitlines()[0]
    linker = subprocess.run(
        ["ld", "--version"], capture_output=True, check=True, text=True
    ).stdout.splitlines()[0]
    files = [(_DATA / name).read_text() for name in (flavour.config, flavour.patch) if name]
    body = json.dumps([version, compiler, linker, *files, _FIXED])
    return hashlib.sha256(body.encode()).hexdigest()


def _package_version() -> str:
    """Of the source's package; without dpkg the archive's size and time stand for it."""
    query = ["dpkg-query", "-W", "-f", "${Version}", _PACKAGE]
    try:
        return subprocess.run(query, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        status = _SOURCE.stat()
        return f"{status.st_size}-{int(status.st_mtime)}"


def _compile(flavour: Flavour, work: Path, progress: Progress, runner: Runner) -> dict[str, Path]:
    progress("unpack the source", 0.0)
    runner.run("unpack the source", ["tar", "-C", work, "-xf", _SOURCE])
    source, output = work / "linux-source-6.1", work / "build"
    output.mkdir()
    if flavour.patch:
        runner.run("patch the source", ["patch", "-d", source, "-p1", "-i", _DATA / flavour.patch])
    progress("configure", 0.10)
    make: list[str | Path] = ["make", "-C", source, f"ARCH={flavour.arch}", f"O={output}"]
    allconfig = f"KCONFIG_ALLCONFIG={_DATA / flavour.config}"
    runner.run("configure", [*make, allconfig, "allnoconfig"], env=_FIXED)
    _check_config(flavour, output / ".config")

    compiled = 0

    def count(line: bytes) -> None:
        nonlocal compiled
        if line.startswith(b"  CC "):
            compiled += 1
            progress("compile", 0.12 + 0.8 * min(1, compiled / flavour.objects))

    jobs = f"-j{len(os.sched_getaffinity(0))}"
    runner.run("compile", ["nice", "-n", "5", *make, jobs, flavour.target], env=_FIXED, on_line=count)
    return {"vmlinux": output / flavour.target, "config": output / ".config"}


def _check_config(flavour: Flavour, config: Path) -> None:
    """Kconfig drops a wish silently when something it depends on is missing: refuse that."""
    have = set(config.read_text().splitlines())
    wishes = [
        line for line in (_DATA / flavour.config).read_text().splitlines() if line.startswith("CONFIG_")
    ]
    lost = [wish for wish in wishes if wish not in have]
    if lost:
        raise BuildError(
            f"this source does not take {', '.join(lost)}", hint=f"look at {_DATA / flavour.config}"
        )


def _boot_uml(work: Path, vmlinux: Path) -> str:
    """Boot the new kernel to its first program, a few times.

    Returns `lpj=` with its loops per jiffy: told, a boot need not measure them, which takes longer than all
    the rest. The highest of the measurements is the least disturbed.
    """
    initrd = work / "initrd"
    write_boot_test(initrd)
    return f"lpj={max(_boot_once(work, vmlinux, initrd) for _ in range(_BOOTS))}"


def _no_trial(work: Path, vmlinux: Path) -> str:
    """A kvm kernel needs /dev/kvm, and a minute where ring 0 is emulated: the tests boot it."""
    return ""


def _boot_once(work: Path, vmlinux: Path, initrd: Path) -> int:
    command: list[str | Path] = [
        *(vmlinux, "mem=64M", f"initrd={initrd}"),
        *("con=null", "con0=null,fd:1", "console=tty0", f"uml_dir={work}/"),
    ]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(work)  # noqa: S108
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_BOOT_LIMIT_S,
            check=False,
            text=True,
            env={"TMPDIR": memory},
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the new kernel did not boot within {_BOOT_LIMIT_S} s") from error
    printed = done.stdout + done.stderr
    lpj = _LPJ.search(printed)
    if BOOT_MARKER not in printed or lpj is None:
        tail = "\n".join(printed.splitlines()[-20:])
        raise BuildError("the new kernel does not boot", hint=f"its last output:\n{tail}", log=tail)
    return int(lpj[1])


def _publish(target: Path, files: dict[str, Path], meta: dict[str, str]) -> None:
    """Copy `files` to the directory `target`, which is there whole or not at all."""
    half = target.with_name(f".{target.name}")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    for name, file in files.items():
        shutil.copyfile(file, half / name)
    (half / "vmlinux").chmod(0o755)
    (half / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for copy in half.iterdir():
        sync(copy)
    shutil.rmtree(target, ignore_errors=True)
    half.rename(target)
    sync(target.parent)


def _switch(kernels: Path, name: str, installed: Path) -> None:
    """Make kernels/<name> point at `installed` and drop the others; running machines keep theirs open."""
    link, new = kernels / name, kernels / f".{name}.link"
    new.unlink(missing_ok=True)
    new.symlink_to(installed.name)
    new.rename(link)
    for old in kernels.glob(f"{name}-*"):
        if old != installed and re.fullmatch(rf"{name}-[0-9a-f]{{12}}", old.name):
            shutil.rmtree(old, ignore_errors=True)


UML = Flavour(
    UML_NAME, "um", "linux", "uml.config", "uml.patch", (*_TOOLS, "patch", "busybox"), (), 1060, _boot_uml
)
KVM = Flavour(KVM_NAME, "x86_64", "vmlinux", "kvm.config", "", _TOOLS, (_LIBELF,), 1470, _no_trial)
