"""The seccomp filters of machines: what their host processes may ask of the host's kernel.

A hostile guest must be assumed to control its process. With User-mode Linux what is listed is what the
guest's kernel needs; guest programs' own system calls never get here: ptrace takes them before seccomp looks.
With kvm it is what the VMM's loops need: the guest's own never get here either. Two filters, both of which
must allow a call: a list of numbers (compiled by `nagaya._core`), and rules on arguments (below). The rest
fails with ENOSYS, so that a C library with newer habits falls back instead of dying.
"""

from __future__ import annotations

import errno
import functools
import json
import mmap
import os
import signal
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from nagaya.abi import kvm, linux

# Seen in strace of boot, load, restart and panic of a 6.1 kernel, static and Debian's, and in
# arch/um/os-Linux.
UML_SYSCALLS = {
    "start and end of a process": "execve brk arch_prctl set_tid_address set_robust_list rseq prlimit64 uname"
    " getrandom setsid exit exit_group restart_syscall",
    "guest memory, one tmpfs file that all map": "mmap munmap mprotect mremap madvise fallocate lseek",
    "the loader, the initrd, the log, the umid directory": "openat access readlink read pread64 write close"
    " fsync fstat newfstatat statfs mkdir rmdir unlink getdents64",
    "guest processes are ptraced children": "ptrace clone wait4 kill tgkill getpid getppid gettid",
    "made by the stub in a guest process on its behalf": "modify_ldt",
    "interrupts are signals and poll": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend sigaltstack"
    " poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait fcntl ioctl eventfd2 pipe pipe2"
    " dup futex",
    "time": "timer_create timer_settime timer_gettime timer_delete clock_gettime clock_getres clock_nanosleep"
    " nanosleep",
    "vhost-user and the management console": "socket socketpair connect bind sendmsg recvmsg sendto recvfrom",
}

# Seen in strace of the process from the jail's end to the guest's, with disks, console and monitor.
KVM_SYSCALLS = {
    "KVM, by the numbers of nagaya.abi.kvm": "ioctl",
    "threads of vCPUs": "clone set_robust_list rseq gettid futex sched_yield exit rt_sigprocmask sigaltstack",
    "a signal calls a vCPU out of its guest": "tgkill getpid rt_sigaction rt_sigreturn restart_syscall",
    "guest memory, a sealed memfd, and Python's own": "memfd_create ftruncate fcntl mmap munmap mremap"
    " mprotect madvise mbind brk",
    "kernel and initrd are read": "openat newfstatat fstat lseek read close",
    "the event loop, kicks and interrupts": "epoll_create1 epoll_ctl epoll_wait poll eventfd2 socketpair"
    " write",
    "the monitor, the serial port and vhost-user": "socket connect accept4 sendto recvfrom sendmsg recvmsg"
    " getsockopt setsockopt getsockname getpeername shutdown",
    "time and randomness": "clock_gettime clock_nanosleep getrandom",
    "the end": "exit_group",
}

_NEW_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """System call `number` fails with EPERM when the low word of argument `index` meets `test`.

    `test` is "is", "is none of", "has any bit of" or "lacks" (all bits of); only "is none of" takes several
    `values`.
    """

    number: int
    index: int
    test: str
    values: tuple[int, ...]


UML_RULES = (
    ArgumentRule(linux.NR_CLONE, 0, "has any bit of", (_NEW_NAMESPACES,)),
    ArgumentRule(linux.NR_SOCKET, 0, "is none of", (socket.AF_UNIX,)),
    ArgumentRule(linux.NR_SOCKETPAIR, 0, "is none of", (socket.AF_UNIX,)),
    # A panicking kernel sends itself SIGABRT until it dies, which process 1 of a pid namespace does not.
    # Refused, it ends with status 127 (arch/um/os-Linux/util.c, uml_abort).
    ArgumentRule(linux.NR_KILL, 1, "is", (signal.SIGABRT,)),
)
_KVMIO = 0xAE  # linux/kvm.h: the type of all of KVM's ioctls
KVM_IOCTLS = tuple(
    sorted(
        {
            value
            for name, value in vars(kvm).items()
            if name.startswith("KVM_") and value >> 8 & 0xFF == _KVMIO
        }
    )
)
KVM_RULES = (
    ArgumentRule(linux.NR_IOCTL, 1, "is none of", (*KVM_IOCTLS, linux.FIONBIO, linux.FIOCLEX)),
    ArgumentRule(linux.NR_CLONE, 0, "lacks", (linux.CLONE_THREAD,)),
    ArgumentRule(linux.NR_SOCKET, 0, "is none of", (socket.AF_UNIX,)),
    ArgumentRule(linux.NR_SOCKETPAIR, 0, "is none of", (socket.AF_UNIX,)),
    ArgumentRule(linux.NR_OPENAT, 2, "has any bit of", (os.O_WRONLY | os.O_RDWR | os.O_CREAT,)),
    # No page becomes executable: all code is mapped before the jail closes.
    ArgumentRule(linux.NR_MMAP, 2, "has any bit of", (mmap.PROT_EXEC,)),
    ArgumentRule(linux.NR_MPROTECT, 2, "has any bit of", (mmap.PROT_EXEC,)),
)
PANIC_STATUS = 127


@functools.cache
def uml_filters() -> tuple[bytes, ...]:
    """The programs to install for User-mode Linux, in order."""
    return assemble(UML_RULES), _compile(UML_SYSCALLS)


@functools.cache
def kvm_filters() -> tuple[bytes, ...]:
    """The programs to install for the kvm engine, in order."""
    return assemble(KVM_RULES), _compile(KVM_SYSCALLS)


def _compile(groups: Mapping[str, str]) -> bytes:
    from nagaya._core import seccomp_compile  # here: whoever only reads the lists needs no Rust core

    names = [name for group in groups.values() for name in group.split()]
    allow = {"default": f"errno:{errno.ENOSYS}", "on_match": "allow", "syscalls": names}
    return seccomp_compile(json.dumps(allow))


def assemble(rules: tuple[ArgumentRule, ...]) -> bytes:
    """A filter that enforces `rules` and allows the rest; the other filter looks at the architecture."""
    code = [(linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_NR)]
    for rule in rules:
        body = [(linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_ARGS + 8 * rule.index), *_test(rule)]
        code += [(linux.BPF_JEQ_K, 0, len(body), rule.number), *body]  # another call: on to the next rule
    code.append((linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _test(rule: ArgumentRule) -> list[tuple[int, int, int, int]]:
    """The instructions that look at the loaded argument and return; a jump counts those that it skips."""
    refuse = (linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ERRNO | errno.EPERM)
    allow = (linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ALLOW)
    if rule.test == "is none of":
        count = len(rule.values)
        matches = [(linux.BPF_JEQ_K, count - at, 0, value) for at, value in enumerate(rule.values)]
        return [*matches, refuse, allow]
    (value,) = rule.values
    if rule.test == "lacks":
        return [(linux.BPF_AND_K, 0, 0, value), (linux.BPF_JEQ_K, 1, 0, value), refuse, allow]
    jump = linux.BPF_JEQ_K if rule.test == "is" else linux.BPF_JSET_K
    return [(jump, 0, 1, value), refuse, allow]
