"""The jail: what a machine's process does between fork and exec or call (docs/security.md, "The jail").

It runs in the zygote's child, which is process 1 of a new pid namespace already. The order matters:

1.  join the control groups of v1, while the host's file system is in sight and we are root; in that of v2 the
    process was born;
2.  open the files and make the sockets that only the host's root file system has;
3.  new session, new mount, ipc, uts, net and cgroup namespaces; hostname;
4.  a new root on tmpfs: binds, files, a tmpfs for guest memory; it replaces the old root, which is detached;
5.  resource limits, CPU;
6.  standard streams; every descriptor that the plan does not name is closed;
7.  capabilities, uid and gid, no_new_privs;
8.  seccomp filters, last, because they forbid nearly all of the above.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nagaya.abi import linux
from nagaya.engines.plan import LaunchPlan

ROOT_BYTES = 256 * 1024  # the root holds empty directories and a few small files
ROOT_INODES = 128
RAM_INODES = 64  # User-mode Linux makes one file for its memory


class StepError(Exception):
    """A step failed; says which one."""


def enter(plan: LaunchPlan, mount_point: str, log_fd: int, report_fd: int) -> dict[str, int]:
    """Build the jail around this process; the descriptors of `plan.opens`, `reads` and `listens`, by name.

    `mount_point` is an empty directory of the host. `report_fd` stays open until exec closes it. Raises
    `StepError`; the process is of no use then.
    """
    fds: dict[str, int] = {}
    with _step("join the control groups"):
        _join_cgroups(plan)
    for files, access in ((plan.opens, os.O_RDWR), (plan.reads, os.O_RDONLY)):
        for name, path in files.items():
            with _step(f"open {path}"):
                fds[name] = os.open(path, access | os.O_CLOEXEC)
    for name, path in plan.listens.items():
        with _step(f"listen on {path}"):
            fds[name] = _listen(path)
    with _step("enter new namespaces"):
        os.setsid()
        linux.unshare(
            linux.CLONE_NEWNS
            | linux.CLONE_NEWIPC
            | linux.CLONE_NEWUTS
            | linux.CLONE_NEWNET
            | linux.CLONE_NEWCGROUP
        )
        linux.sethostname(plan.hostname)
    with _step("build the new root"):
        _build_root(plan, mount_point)
    with _step("change the root"):
        _change_root(mount_point)
    with _step("set limits"):
        _limit(plan)
    with _step("set up the standard streams"):
        _streams(log_fd, (report_fd, *fds.values()))
    with _step("give up privileges"):
        _drop_privileges(plan)
    with _step("install the seccomp filters"):
        for program in plan.seccomp:
            linux.seccomp_install(program)
    return fds


def execute(plan: LaunchPlan) -> None:
    """Become the program. Returns never; raises `StepError` if it cannot."""
    with _step(f"execute {plan.executable}"):
        os.execve(plan.executable, plan.argv, dict(plan.env))  # noqa: S606 - this is the point


@contextmanager
def _step(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise StepError(f"{name}: {error}") from error


def _join_cgroups(plan: LaunchPlan) -> None:
    for path in plan.tasks:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


def _listen(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        Path(path).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(16)
        return listener.detach()


def _build_root(plan: LaunchPlan, mount_point: str) -> None:
    os.umask(0o022)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    guarded = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount(
        "tmpfs", mount_point, "tmpfs", guarded, f"size={ROOT_BYTES},nr_inodes={ROOT_INODES},mode=0755"
    )
    for bind in plan.binds:
        target = mount_point + bind.target
        _make_target(target, Path(bind.source).is_dir())
        linux.mount(bind.source, target, "", linux.MS_BIND)
        flags = linux.MS_REMOUNT | linux.MS_BIND | guarded
        linux.mount("", target, "", flags | (linux.MS_NOEXEC if bind.writable else linux.MS_RDONLY))
    for inside, text in plan.files.items():
        _make_target(mount_point + inside, False)
        Path(mount_point + inside).write_text(text)
    if plan.ram_bytes:
        _mount_ram(plan, mount_point, guarded)


def _mount_ram(plan: LaunchPlan, mount_point: str, guarded: int) -> None:
    ram = mount_point + plan.ram_dir
    _make_target(ram, True)
    options = f"size={plan.ram_bytes},nr_inodes={RAM_INODES},mode=0700,uid={plan.uid},gid={plan.gid}"
    linux.mount("tmpfs", ram, "tmpfs", guarded, options)  # guests execute out of their memory: not noexec


def _make_target(path: str, directory: bool) -> None:
    if directory:
        Path(path).mkdir(parents=True, exist_ok=True)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch(mode=0o444)


def _change_root(mount_point: str) -> None:
    os.chdir(mount_point)
    linux.pivot_root(".", ".")  # the old root comes to lie over the new one...
    linux.umount(".", linux.MNT_DETACH)  # ...and goes
    os.chdir("/")
    guarded = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | guarded)


def _limit(plan: LaunchPlan) -> None:
    for name, value in plan.rlimits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
    if plan.cpu is not None:
        os.sched_setaffinity(0, {plan.cpu})
    if plan.fixed_layout:
        linux.personality(linux.ADDR_NO_RANDOMIZE)
    os.umask(0o077)


def _streams(log_fd: int, kept: Iterable[int]) -> None:
    """0: end of file; 1 and 2: the log. The rest is closed but `kept`, which exec closes."""
    empty, writer = os.pipe()
    os.close(writer)
    os.dup2(empty, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    first = 3
    for fd in sorted(kept):
        if fd > first:
            linux.close_range(first, fd - 1)
        first = fd + 1
    linux.close_range(first)
    linux.default_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _drop_privileges(plan: LaunchPlan) -> None:
    if plan.uid != os.getuid():
        os.setgroups([])
        os.setresgid(plan.gid, plan.gid, plan.gid)
    last = 0
    try:
        while True:  # the bounding set ends where the kernel knows no further capability
            linux.prctl(linux.PR_CAPBSET_DROP, last)
            last += 1
    except OSError:
        if last == 0:
            raise
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    if plan.uid != os.getuid():
        os.setresuid(plan.uid, plan.uid, plan.uid)  # clears all capability sets
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
