"""What this host can and cannot do for Nagaya, each fact found by trying, never by a version.

`examine(paths)` returns one `Finding` for each fact; `nagaya doctor` prints them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from nagaya.paths import Paths
from nagaya.units import human_size

_IO_URING_SETUP = 425  # the same number on every architecture
_IO_URING_PARAMS_BYTES = 120
_ANSWER_S = 2.0  # a live local service answers in milliseconds
_LITTLE_DISK = 4 * 2**30  # two Debian images and their overlays
_LITTLE_MEMORY = 2**30
_LITTLE_SHM = 512 * 2**20


class State(StrEnum):
    """How a finding bears on running machines."""

    OK = "ok"
    WARN = "warn"  # machines run, but less well or not all kinds
    FAIL = "fail"  # no machine runs before this is mended


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the host: what was found, what it means, and how to mend it."""

    name: str
    state: State
    found: str
    meaning: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return {key: str(value) for key, value in asdict(self).items()}


def examine(paths: Paths) -> list[Finding]:
    """Try everything that machines need. Changes nothing and starts nothing."""
    return list(_findings(paths))


def _findings(paths: Paths) -> Iterator[Finding]:
    yield _user()
    yield Finding("directories", State.OK, f"{paths.state}, {paths.cache} (caches), {paths.run} (sockets)")
    yield from _kvm(paths)
    yield from _packages()
    yield _uml(paths)
    yield _io_uring()
    yield _cgroups()
    yield _pressure()
    yield _huge_pages()
    yield _equal_pages()
    yield _core_scheduling()
    yield _user_namespaces()
    yield from _networks(paths)
    yield _room("disk space", _existing(paths.state), _LITTLE_DISK, "images and disks of machines")
    yield _room("shared memory", Path("/dev/shm"), _LITTLE_SHM, "the memory of machines")  # noqa: S108
    yield _memory()
    yield _service("daemon", paths.api_socket, socket.SOCK_STREAM, "`nagaya daemon start`")
    yield _service("plane", paths.plane_socket, socket.SOCK_STREAM, "the next start of a machine starts it")
    yield _service(
        "zygote", paths.zygote_socket, socket.SOCK_SEQPACKET, "the next start of a machine starts it"
    )


def _user() -> Finding:
    uid = os.geteuid()
    if uid == 0:
        return Finding("user", State.OK, "root")
    return Finding(
        "user",
        State.WARN,
        f"uid {uid}",
        "a daemon that you start cannot give each machine a user and namespaces of its own",
        "use root's daemon: join the group nagaya, or run as root",
    )


def _kvm(paths: Paths) -> Iterator[Finding]:
    """The verdict of `nagaya.kvm.probe`, which runs a guest for some milliseconds, and the kernel for it."""
    from nagaya.kvm.probe import probe

    host = probe()
    if not host.usable:
        unusable = "the engine `kvm` cannot run; `uml` needs no KVM"
        yield Finding("kvm", State.WARN, host.problem, unusable, host.hint)
        return
    if host.native:
        yield Finding("kvm", State.OK, host.sentence)
    else:
        yield Finding(
            "kvm",
            State.WARN,
            host.sentence,
            "engine `auto` takes `uml` here, which is not touched by this",
            "where this host is itself a guest: ask for nested virtualization",
        )
    if (paths.kernels / "kvm").exists():
        yield Finding("kvm kernel", State.OK, str(paths.kernels / "kvm"))
    else:
        yield Finding(
            "kvm kernel",
            State.WARN if host.native else State.OK,
            "not built",
            "machines of the engine `kvm` have to name one (boot.kernel), and `auto` takes `uml`",
            "nagaya kernel build kvm",
        )


def _packages() -> Iterator[Finding]:
    for program, package, purpose in (
        ("mmdebstrap", "mmdebstrap", "Debian images cannot be built"),
        ("mke2fs", "e2fsprogs", "images cannot be built"),
        ("busybox", "busybox-static", "the BusyBox image cannot be built"),
        ("qemu-img", "qemu-utils", "disks cannot be merged, imported and exported"),
    ):
        where = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        if where:
            yield Finding(package, State.OK, where)
        else:
            yield Finding(package, State.WARN, f"no {program}", purpose, f"apt-get install {package}")


def _uml(paths: Paths) -> Finding:
    if (paths.kernels / "uml" / "vmlinux").exists():
        return Finding("kernel", State.OK, str(paths.kernels / "uml"))
    debian = shutil.which("linux.uml")
    if debian:
        return Finding(
            "kernel",
            State.WARN,
            debian,
            "Debian's kernel boots in 1.3 s instead of 0.1 s and takes twice the memory",
            "nagaya kernel build uml",
        )
    return Finding(
        "kernel",
        State.FAIL,
        "no User-mode Linux kernel",
        "the engine `uml` cannot run",
        "nagaya kernel build uml, or apt-get install user-mode-linux",
    )


def _io_uring() -> Finding:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_IO_URING_SETUP, 1, ctypes.create_string_buffer(_IO_URING_PARAMS_BYTES))
    if fd >= 0:
        os.close(fd)
        return Finding("io_uring", State.OK, "works")
    return Finding(
        "io_uring",
        State.FAIL,
        os.strerror(ctypes.get_errno()),
        "disks of machines cannot be served",
        "sysctl kernel.io_uring_disabled=0; in a container: allow io_uring in its seccomp profile",
    )


def _cgroups() -> Finding:
    controllers: set[str] = set()
    versions = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        _, _, tail = line.partition(" - ")
        kind, _source, options = tail.split(" ", 2)
        if kind == "cgroup":
            versions.add("v1")
            controllers |= set(options.split(","))
        elif kind == "cgroup2":
            versions.add("v2")
            listing = Path(line.split(" ")[4], "cgroup.controllers")
            controllers |= set(listing.read_text().split()) if listing.exists() else set()
    missing = sorted({"cpu", "cpuset", "memory", "pids"} - controllers)
    found = (
        f"{' and '.join(sorted(versions)) or 'none'}: {' '.join(sorted(controllers & _KNOWN_CONTROLLERS))}"
    )
    if missing:
        return Finding(
            "cgroups",
            State.WARN,
            found,
            f"no limit of {', '.join(missing)} is enforced on machines",
            "mount cgroup2 at /sys/fs/cgroup; in a container: delegate these controllers to it",
        )
    return Finding("cgroups", State.OK, found)


def _pressure() -> Finding:
    """Whether the kernel tells who stands still for want of CPU and memory (docs/memory.md, "Pressure")."""
    from nagaya.resources.pressure import host_pressure

    if host_pressure().memory is None:
        return Finding(
            "pressure",
            State.WARN,
            "the kernel does not tell of stalls (PSI)",
            "waits for a CPU are summed over tasks instead, and nobody sees who waits for memory",
            "boot the host with psi=1",
        )
    if " - cgroup2 " not in Path("/proc/self/mountinfo").read_text():
        return Finding(
            "pressure",
            State.WARN,
            "of the host only",
            "no hierarchy of v2 is mounted: of machines it is not known who waits for memory",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        )
    return Finding("pressure", State.OK, "of the host and of each machine")


def _huge_pages() -> Finding:
    """Whether `nagaya memory move --huge on` can do anything (docs/memory.md, "Relocation")."""
    switch = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    name, without = "huge pages", "machines of the engine `kvm` cannot be moved into huge pages"
    if not switch.exists():
        return Finding(name, State.OK, "none of shared memory in this kernel", without)
    if "[never]" in switch.read_text() or "[deny]" in switch.read_text():
        return Finding(name, State.OK, "switched off for shared memory", without, f"echo advise > {switch}")
    return Finding(name, State.OK, "of shared memory, by command")


def _equal_pages() -> Finding:
    """Whether KSM is of use to machines (docs/decisions/0022-equal-pages.md)."""
    from nagaya.resources import ksm

    if ksm.merges_guests():
        return Finding("equal pages", State.OK, "KSM merges memory such as guests have")
    found = "KSM merges private memory only" if ksm.merges_at_all() else "no KSM in this kernel"
    return Finding(
        "equal pages", State.OK, found, "guests' memory is shared with the plane: equal pages stay apart"
    )


_KNOWN_CONTROLLERS = {"cpu", "cpuset", "memory", "pids", "io", "blkio", "freezer", "devices"}


def _core_scheduling() -> Finding:
    from nagaya.engines.cores import Cores, probe

    found = probe()
    if found is not Cores.NONE or not _has_smt():
        return Finding("core scheduling", State.OK, str(found))
    return Finding(
        "core scheduling",
        State.WARN,
        str(found),
        "two machines may run on the two threads of one core, and watch its caches",
        "a kernel with core scheduling, or nosmt on its command line, if machines do not trust one another",
    )


def _has_smt() -> bool:
    active = Path("/sys/devices/system/cpu/smt/active")
    return active.exists() and active.read_text().strip() == "1"


def _user_namespaces() -> Finding:
    unshare = shutil.which("unshare")
    if (
        unshare
        and subprocess.run([unshare, "--user", "true"], capture_output=True, check=False).returncode == 0
    ):
        return Finding("user namespaces", State.OK, "work")
    state = State.OK if os.geteuid() == 0 else State.WARN
    return Finding(
        "user namespaces",
        state,
        "refused",
        "only root can build images and jail machines",
        "sysctl user.max_user_namespaces=10000",
    )


def _networks(paths: Paths) -> Iterator[Finding]:
    from nagaya.networks.survey import survey

    for fact in survey(paths):
        yield Finding(fact.name, State.OK if fact.well else State.WARN, fact.found, fact.meaning, fact.fix)


def _room(name: str, directory: Path, little: int, purpose: str) -> Finding:
    try:
        facts = os.statvfs(directory)
    except OSError as error:
        return Finding(name, State.FAIL, f"{directory}: {error.strerror}", f"nowhere for {purpose}")
    free = facts.f_bavail * facts.f_frsize
    found = f"{human_size(free)} free in {directory}"
    if free < little:
        fix = (
            "free some, or set NAGAYA_STATE_DIR"
            if name == "disk space"
            else f"mount {directory} with a larger size="
        )
        return Finding(name, State.WARN, found, f"little for {purpose}", fix)
    return Finding(name, State.OK, found)


def _existing(directory: Path) -> Path:
    """`directory`, or the nearest one above it that exists."""
    while not directory.exists():
        directory = directory.parent
    return directory


def _memory() -> Finding:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    total = int(lines["MemTotal"].split()[0]) * 1024
    found = f"{human_size(available)} of {human_size(total)} available"
    if available < _LITTLE_MEMORY:
        return Finding("memory", State.WARN, found, "few machines fit", "stop what you can spare")
    return Finding("memory", State.OK, found)


def _service(name: str, path: Path, kind: socket.SocketKind, fix: str) -> Finding:
    """Whether somebody listens behind `path`."""
    try:
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.settimeout(_ANSWER_S)
            probe.connect(str(path))
    except FileNotFoundError:
        return Finding(name, State.OK, "not running", f"no socket {path}", fix)
    except ConnectionRefusedError:
        return Finding(
            name, State.WARN, f"stale socket {path}", "it was killed; nothing listens any more", fix
        )
    except PermissionError:
        return Finding(name, State.WARN, f"{path}: permission denied", "not yours", "join the group nagaya")
    except OSError as error:
        return Finding(name, State.FAIL, f"{path}: {error}", "it does not take connections", fix)
    return Finding(name, State.OK, f"answers on {path}")
