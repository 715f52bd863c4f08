"""Runs one program on files that may be hostile, in a jail of its own (docs/security.md, "Image files").

`python -m nagaya.images.confined PLAN` is the jail's inside: new mount, pid, network, ipc, uts and cgroup
namespaces, an empty root that shows the host's programs and libraries and the files of the plan, the former
read-only, a uid of its own, limits, a list of system calls, and one capability: to open those files whatever
their mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nagaya import oom
from nagaya.abi import linux
from nagaya.errors import ResourceError
from nagaya.images.tools import find_tool
from nagaya.seccomp import allow

OUTPUT_LIMIT = 64 * 2**20  # bytes of standard output: the map of a very fragmented disk
JAIL_FAILED = 125  # the exit status
MESSAGE_LIMIT = 16 * 1024  # bytes of what it complains
_CHUNK = 64 * 1024
_ROOT_BYTES, _ROOT_INODES = 256 * 1024, 512  # mount points of the plan's files and their directories
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin")
_DEVICES = ("/dev/null", "/dev/urandom")

# Seen in strace of qemu-img with all formats; no process, no socket, no io_uring, no mount, no other's
# memory.
_SYSCALLS = (
    "execve brk arch_prctl set_tid_address set_robust_list rseq prlimit64 uname getrandom exit"
    " exit_group restart_syscall mmap munmap mprotect mremap madvise futex clone rt_sigaction"
    " rt_sigprocmask rt_sigreturn sigaltstack signalfd4 getpid gettid tgkill sched_getaffinity"
    " sched_yield set_mempolicy get_mempolicy prctl openat access faccessat2 readlink read write pread64"
    " pwrite64 preadv pwritev readv writev close close_range lseek fstat newfstatat statx fstatfs statfs"
    " fsync fdatasync sync_file_range ftruncate fallocate fadvise64 copy_file_range fcntl ioctl"
    " getdents64 eventfd2 pipe2 dup ppoll poll epoll_create1 epoll_ctl epoll_wait epoll_pwait"
    " clock_gettime clock_getres clock_nanosleep nanosleep umask getcwd getuid geteuid getgid"
    " getegid"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What runs, on what. Paths are those of the host, and the same inside."""

    argv: tuple[str, ...]
    uid: int  # and gid; 0 without root: that of a user namespace
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    file_size: int = 2**62  # bytes that no file may exceed
    memory: int = 2 * 2**30  # bytes of address space


@dataclass(slots=True)
class Outcome:
    """How it ended."""

    status: int
    output: bytes = b""
    message: bytes = b""


async def run(plan: Plan, on_output: Callable[[bytes], None] | None = None) -> Outcome:
    """Run `plan` at idle priority to its end. Cancelled, it kills the program and returns when it is gone.

    `on_output` takes standard output piece by piece, else it is kept. Raises `ResourceError` if that is
    more than `OUTPUT_LIMIT`, and `UnavailableError` if a program is missing.
    """
    priority = [str(find_tool("ionice")), "-c", "3", "-t", str(find_tool("nice")), "-n", "10"]
    # The program ends with the thread that started it: a killed daemon leaves nothing behind that writes.
    lifeline = [str(find_tool("setpriv")), "--pdeathsig", "KILL", "--"]
    process = await asyncio.create_subprocess_exec(
        *(*priority, *lifeline, sys.executable, "-m", "nagaya.images.confined", json.dumps(asdict(plan))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    oom.set_score(process.pid, oom.ORDINARY)
    outcome = Outcome(-1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_read_output(process, outcome, on_output))
            group.create_task(_read_message(process, outcome))
        outcome.status = await process.wait()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return outcome


async def _read_output(
    process: asyncio.subprocess.Process, outcome: Outcome, on_output: Callable[[bytes], None] | None
) -> None:
    kept = bytearray()
    while process.stdout is not None and (piece := await process.stdout.read(_CHUNK)):
        if on_output is not None:
            on_output(piece)
            continue
        kept += piece
        if len(kept) > OUTPUT_LIMIT:
            raise ResourceError(f"a program printed more than {OUTPUT_LIMIT} bytes about an image file")
    outcome.output = bytes(kept)


async def _read_message(process: asyncio.subprocess.Process, outcome: Outcome) -> None:
    while process.stderr is not None and (piece := await process.stderr.read(_CHUNK)):
        outcome.message = (outcome.message + piece)[-MESSAGE_LIMIT:]


def main(argument: str) -> int:
    """The inside. Exit status of the program, 125 if the jail cannot be built."""
    facts: dict[str, Any] = json.loads(argument)
    facts |= {key: tuple(facts[key]) for key in ("argv", "reads", "writes")}
    plan = Plan(**facts)
    filters = (allow({"qemu-img": _SYSCALLS}),)
    try:
        if os.geteuid() != 0:
            _become_root_of_a_namespace()
        pid = linux.fork(
            linux.CLONE_NEWNS
            | linux.CLONE_NEWPID
            | linux.CLONE_NEWNET
            | linux.CLONE_NEWIPC
            | linux.CLONE_NEWUTS
            | linux.CLONE_NEWCGROUP
        )
        if pid == 0:
            _enter(plan, filters)
            os.execve(plan.argv[0], plan.argv, {"LC_ALL": "C.UTF-8"})  # noqa: S606 - this is the point
    except OSError as error:
        sys.stderr.write(f"the jail of {plan.argv[0]} cannot be built: {error}\n")
        return JAIL_FAILED
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF


def _become_root_of_a_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _enter(plan: Plan, filters: Sequence[bytes]) -> None:
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    _build_root(plan, tempfile.gettempdir())
    limits: Mapping[int, int] = {
        resource.RLIMIT_AS: plan.memory,
        resource.RLIMIT_FSIZE: plan.file_size,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))
    linux.close_range(3)
    _drop_privileges(plan)
    for program in filters:
        linux.seccomp_install(program)


def _build_root(plan: Plan, root: str) -> None:
    """An empty file system comes to lie on `root`, is filled, and becomes the root."""
    guarded = linux.MS_NOSUID | linux.MS_NODEV
    options = f"size={_ROOT_BYTES},nr_inodes={_ROOT_INODES},mode=0755"
    sources = {path: os.open(path, os.O_PATH) for path in (*plan.reads, *plan.writes)}  # `root` may hide them
    linux.mount("tmpfs", root, "tmpfs", guarded, options)
    for path in _SYSTEM:
        if Path(path).is_symlink():
            Path(root + path).symlink_to(Path(path).readlink())
        elif Path(path).is_dir():
            _bind(path, root + path, guarded | linux.MS_RDONLY)
    for path in _DEVICES:
        _bind(path, root + path, linux.MS_NOSUID | linux.MS_NOEXEC)
    for path, source in sources.items():
        readable = linux.MS_RDONLY if path in plan.reads else 0
        _bind(f"/proc/self/fd/{source}", root + path, guarded | linux.MS_NOEXEC | readable)
    os.chdir(root)
    linux.pivot_root(".", ".")
    linux.umount(".", linux.MNT_DETACH)
    os.chdir("/")
    linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | guarded)


def _bind(source: str, target: str, flags: int) -> None:
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    elif not Path(target).exists():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    linux.mount(source, target, "", linux.MS_BIND)
    linux.mount("", target, "", linux.MS_REMOUNT | linux.MS_BIND | flags)


def _drop_privileges(plan: Plan) -> None:
    """Another uid, no capability but the one that opens the plan's files, and no way to more."""
    if plan.uid:
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
    linux.keep_capability(linux.CAP_DAC_OVERRIDE, plan.uid)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
