"""What User-mode Linux is started with: its command line, and what its jail must show."""

from __future__ import annotations

import functools
import os
import platform
import re
import struct
import subprocess
from pathlib import Path

from nagaya.engines.engine import Machine
from nagaya.engines.plan import Bind, LaunchPlan
from nagaya.engines.seccomp import uml_filters
from nagaya.errors import UnavailableError, UnsupportedError
from nagaya.resources.cgroups import Cgroup
from nagaya.spec import MIB

VIRTIO_IDS = {"net": 1, "disk": 2, "console": 3, "rng": 4, "balloon": 5}  # virtio 1.3, section 5
RAM_DIR = "/ram"
UMID = "0"
MCONSOLE = f"{RAM_DIR}/{UMID}/mconsole"  # inside; made by the guest's kernel
RAM_SLACK = 2 * MIB  # the memory file, and the umid directory beside it
LOG_LIMIT = 256 * 1024
# What a machine's processes take of the host beyond the guest's memory: the kernel's image and tables, and
# for each guest process a host process with its page tables. Measured: 14 MiB idle, 30 to 60 KiB a guest
# process.
OVERHEAD = 64 * MIB
OVERHEAD_SHARE = 8
PIDS_MIN = 4096
PIDS_PER_MIB = 32  # a guest process needs tens of KiB of guest memory, so that memory ends first
NOFILE = 1024  # guest files are not host files; a vhost-user device takes 2 descriptors and 2 a queue
_INITRD = "/initrd"
_KERNEL = "/linux"
_PT_INTERP = 3
_LIBRARY = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_AMX_HOST = (
    "this host's CPU has AMX, with which User-mode Linux kernels of Debian's package cannot start a program"
)


def host_memory(machine: Machine) -> int:
    """Bytes of host memory that the machine's processes may use, guest memory included."""
    size = machine.spec.memory.size
    return size + size // OVERHEAD_SHARE + OVERHEAD


def max_pids(machine: Machine) -> int:
    """How many host processes, and so guest processes, the machine may have."""
    return max(PIDS_MIN, machine.spec.memory.size // MIB * PIDS_PER_MIB)


def launch_plan(machine: Machine, group: Cgroup, cpu: int | None) -> LaunchPlan:
    """The whole plan. Raises `UnavailableError` or `UnsupportedError` about the kernel."""
    kernel = machine.kernel
    if kernel.origin.startswith("package ") and _has_amx():
        raise UnsupportedError(
            f"kernel {kernel.name}: {_AMX_HOST}",
            hint="build our own: nagaya kernel build uml",
            field="boot.kernel",
        )
    paths = machine.paths
    rooted = os.geteuid() == 0
    return LaunchPlan(
        machine=machine.id,
        executable=_KERNEL,
        argv=(f"nagaya-uml:{machine.spec.name}", *command_line(machine)),
        env={"TMPDIR": RAM_DIR},
        uid=machine.uid if rooted else 0,  # not root: the zygote's user namespace knows only us, as 0
        gid=machine.gid if rooted else 0,
        hostname=machine.spec.name,
        ram_bytes=machine.spec.memory.size + RAM_SLACK,
        ram_dir=RAM_DIR,
        exit_file=str(paths.exit_file),
        log=str(paths.engine_log),
        log_limit=LOG_LIMIT,
        binds=_binds(machine),
        files={"/proc/cpuinfo": cpuinfo(Path("/proc/cpuinfo").read_text())},
        cgroup=group.v2,
        tasks=group.tasks_files,
        cpu=cpu,
        rlimits={"core": 0, "nofile": NOFILE, "memlock": 0, "msgqueue": 0},
        seccomp=uml_filters(),
        fixed_layout=True,  # else the gap before the heap, up to 32 MiB and random, becomes guest memory too
    )


def command_line(machine: Machine) -> tuple[str, ...]:
    """The kernel's arguments, in the order in which later ones win."""
    spec = machine.spec
    devices = [
        f"virtio_uml.device={machine.paths.device_socket(name)}:{VIRTIO_IDS[name.rstrip('0123456789')]}"
        for name in machine.devices
    ]
    root = [f"root=/dev/vda {'ro' if spec.disks[0].read_only else 'rw'}"] if spec.disks else []
    return (
        f"mem={spec.memory.size // 1024}K",
        f"umid={UMID}",
        f"uml_dir={RAM_DIR}/",
        "con=null",
        *machine.kernel.cmdline.split(),
        *devices,
        *([f"initrd={_INITRD}"] if _initrd(machine) else []),
        *(word for words in root for word in words.split()),
        "console=hvc0",
        "quiet",
        f"nagaya.hostname={spec.name}",
        *spec.boot.cmdline.split(),
    )


def cpuinfo(text: str) -> str:
    """What a guest is shown of the host's /proc/cpuinfo: the flags and the cache line of one CPU."""
    kept: dict[str, str] = {}
    for line in text.splitlines():
        name = line.partition(":")[0].strip()
        if name in ("flags", "cache_alignment"):
            kept.setdefault(name, line)
    return "".join(f"{line}\n" for line in kept.values())


def _initrd(machine: Machine) -> str:
    return machine.spec.boot.initrd or machine.kernel.initrd


def _binds(machine: Machine) -> tuple[Bind, ...]:
    kernel = Path(machine.kernel.path)
    try:
        libraries = shared_libraries(str(kernel), kernel.stat().st_mtime_ns)
    except OSError as error:
        raise UnavailableError(
            f"kernel {machine.kernel.name}: {kernel}: {error.strerror}", hint="nagaya kernel build uml"
        ) from error
    jail = str(machine.paths.jail)
    binds = [Bind(jail, jail), Bind(str(kernel), _KERNEL), *(Bind(path, path) for path in libraries)]
    initrd = _initrd(machine)
    if initrd:
        if not Path(initrd).is_file():
            raise UnavailableError(f"boot.initrd: there is no file {initrd}", field="boot.initrd")
        binds.append(Bind(initrd, _INITRD))
    return tuple(binds)


@functools.lru_cache(maxsize=16)
def shared_libraries(path: str, _mtime_ns: int) -> tuple[str, ...]:
    """The program interpreter and the libraries of an executable, () if it is static. Raises `OSError`."""
    interpreter = _interpreter(path)
    if not interpreter:
        return ()
    listing = subprocess.run([interpreter, "--list", path], capture_output=True, text=True, check=False)
    return tuple(dict.fromkeys((interpreter, *_LIBRARY.findall(listing.stdout))))


def _interpreter(path: str) -> str:
    """PT_INTERP of a 64-bit little-endian ELF file (ELF-64 object file format, figures 2 and 11)."""
    with Path(path).open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01" or len(header) < 64:
            raise OSError(8, f"not a 64-bit {platform.machine()} executable")
        (table,), (size, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
        for index in range(min(count, 64)):  # an executable has about ten
            file.seek(table + index * size)
            kind, _, offset, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, 4096)).rstrip(b"\0").decode()
    return ""


@functools.cache
def _has_amx() -> bool:
    """AMX makes the register set of ptrace larger than the 2696 bytes that kernels before 6.13 expect."""
    return " amx_tile" in Path("/proc/cpuinfo").read_text()
