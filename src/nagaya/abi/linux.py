"""Linux system calls and constants that Python 3.11 does not offer. Every function raises `OSError`.

Man pages: unshare(2), setns(2), mount(2), pivot_root(2), prctl(2), seccomp(2), close_range(2),
personality(2), clone3(2), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
from typing import Any

# unshare(2), clone(2)
CLONE_THREAD = 0x00010000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000  # clone3(2) only

# mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

# umount2(2)
MNT_DETACH = 2

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
PR_SCHED_CORE = 62
PR_SCHED_CORE_GET = 0
PR_SCHED_CORE_CREATE = 1
PR_SCHED_CORE_SCOPE_THREAD_GROUP = 1

# capabilities(7)
CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522

# personality(2)
ADDR_NO_RANDOMIZE = 0x0040000

# seccomp(2): what a filter returns
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000

# classic BPF (linux/filter.h, linux/bpf_common.h): the instructions that our own filters use
BPF_LD_W_ABS = 0x20
BPF_JEQ_K = 0x15
BPF_JSET_K = 0x45
BPF_RET_K = 0x06
BPF_AND_K = 0x54

# offsets in struct seccomp_data
SECCOMP_DATA_NR = 0
SECCOMP_DATA_ARGS = 16

# x86-64 system call numbers (asm/unistd_64.h)
NR_MMAP = 9
NR_MPROTECT = 10
NR_IOCTL = 16
NR_SOCKET = 41
NR_SOCKETPAIR = 53
NR_SETSOCKOPT = 54
NR_CLONE = 56
NR_KILL = 62
NR_PTRACE = 101
NR_PIVOT_ROOT = 155
NR_OPENAT = 257
NR_CLONE3 = 435

# asm-generic/ioctls.h: what Python makes of `set_blocking` and `set_inheritable`
FIONBIO = 0x5421
FIOCLEX = 0x5451

# linux/ptrace.h, linux/elf.h
PTRACE_GETREGSET = 0x4204
NT_X86_XSTATE = 0x202

SO_PEERCRED_SIZE = 12  # struct ucred: pid, uid, gid


class CloneArgs(ctypes.Structure):
    """struct clone_args, version 2 (linux/sched.h)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


class SockFprog(ctypes.Structure):
    """struct sock_fprog: a program of 8-byte `struct sock_filter`."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_libc_gil = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock during a call, which fork needs
_libc_gil.syscall.restype = ctypes.c_long


def _declare(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    function.errcheck = _check
    return function


def _check(result: int, function: Any, arguments: tuple[object, ...]) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}: {os.strerror(number)}")
    return result


_unshare = _declare("unshare", ctypes.c_int)
_setns = _declare("setns", ctypes.c_int, ctypes.c_int)
_mount = _declare("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", ctypes.c_char_p, ctypes.c_int)
_prctl = _declare("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_sethostname = _declare("sethostname", ctypes.c_char_p, ctypes.c_size_t)
_personality = _declare("personality", ctypes.c_ulong)
_capset = _declare("capset", ctypes.c_char_p, ctypes.c_char_p)
_close_range = _declare("close_range", ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_pivot_root = _declare("syscall", ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p)


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` (CLONE_NEW*) name."""
    _unshare(flags)


def setns(fd: int, kind: int) -> None:
    """Join the namespace behind `fd`, of kind CLONE_NEW*."""
    _setns(fd, kind)


def mount(source: str, target: str, fstype: str, flags: int, options: str = "") -> None:
    """mount(2); empty strings stand for NULL."""
    _mount(
        os.fsencode(source) or None,
        os.fsencode(target),
        os.fsencode(fstype) or None,
        flags,
        os.fsencode(options) or None,
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _umount2(os.fsencode(target), flags)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _pivot_root(NR_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old))


def prctl(option: int, argument: int = 0, *more: int) -> int:
    """prctl(2), with up to three arguments more; those that are left out are 0."""
    result: int = _prctl(option, argument, *(*more, 0, 0, 0)[:3])
    return result


def keep_capability(capability: int, uid: int) -> None:
    """Become `uid` (0: stay root) with `capability`, below 32, as the only one, also after an exec."""
    number = 0
    with contextlib.suppress(OSError):  # the bounding set ends where the kernel knows no further capability
        while True:
            if number != capability:
                prctl(PR_CAPBSET_DROP, number)
            number += 1
    prctl(PR_SET_KEEPCAPS, 1)
    if uid:
        os.setresuid(uid, uid, uid)
    mask = 1 << capability
    _capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", mask, mask, mask, 0, 0, 0))
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


def sethostname(name: str) -> None:
    """Name the host of this uts namespace."""
    encoded = os.fsencode(name)
    _sethostname(encoded, len(encoded))


def personality(persona: int) -> None:
    """Set the execution domain of this process and of what it executes."""
    _personality(persona)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every file descriptor from `first` to `last`, both included."""
    _close_range(first, last, 0)


def fork(flags: int, cgroup_fd: int = -1) -> int:
    """fork(2) into new namespaces (CLONE_NEW* in `flags`) and the v2 control group behind `cgroup_fd`.

    Returns 0 in the child. Only for a process with one thread.
    """
    arguments = CloneArgs(flags=flags, exit_signal=signal.SIGCHLD)
    if cgroup_fd >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = _libc_gil.syscall(NR_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    number = ctypes.get_errno()
    if pid == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    if pid == -1:
        raise OSError(number, f"clone3: {os.strerror(number)}")
    return int(pid)


def default_signals() -> None:
    """Give every signal its default action. The module `signal` is not told: by it they take 0.2 ms."""
    for number in range(1, signal.NSIG):
        _libc.signal(number, None)  # refused for SIGKILL, SIGSTOP and those of the C library


def seccomp_install(program: bytes) -> None:
    """Add a seccomp filter, an array of `struct sock_filter`; needs no_new_privs or CAP_SYS_ADMIN."""
    fprog = SockFprog(len(program) // 8, program)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(fprog), 0, 0)
