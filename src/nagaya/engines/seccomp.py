"""The seccomp filters of a User-mode Linux machine: what its host processes may ask of the host's kernel.

Guest programs' own system calls never get here: ptrace takes them before seccomp looks. What is listed is
what the guest's kernel needs, a process of the host that a hostile guest must be assumed to control. Two
filters, both of which must allow a call: a list of numbers (compiled by `nagaya._core`), and rules on
arguments (below). The rest fails with ENOSYS, so that a C library with newer habits falls back instead of
dying.
"""

from __future__ import annotations

import errno
import functools
import json
import signal
import socket
import struct
from dataclasses import dataclass

from nagaya.abi import linux

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

    `test` is "is", "is not" or "has any bit of" (`value`).
    """

    number: int
    index: int
    test: str
    value: int


ARGUMENT_RULES = (
    ArgumentRule(linux.NR_CLONE, 0, "has any bit of", _NEW_NAMESPACES),
    ArgumentRule(linux.NR_SOCKET, 0, "is not", socket.AF_UNIX),
    ArgumentRule(linux.NR_SOCKETPAIR, 0, "is not", socket.AF_UNIX),
    # A panicking kernel sends itself SIGABRT until it dies, which process 1 of a pid namespace does not.
    # Refused, it ends with status 127 (arch/um/os-Linux/util.c, uml_abort).
    ArgumentRule(linux.NR_KILL, 1, "is", signal.SIGABRT),
)
PANIC_STATUS = 127


@functools.cache
def uml_filters() -> tuple[bytes, ...]:
    """The programs to install, in order."""
    from nagaya._core import seccomp_compile  # here, so that the zygote does not map the Rust core

    names = [name for group in UML_SYSCALLS.values() for name in group.split()]
    allow = {"default": f"errno:{errno.ENOSYS}", "on_match": "allow", "syscalls": names}
    return assemble(ARGUMENT_RULES), seccomp_compile(json.dumps(allow))


def assemble(rules: tuple[ArgumentRule, ...]) -> bytes:
    """A filter that enforces `rules` and allows the rest; the other filter looks at the architecture."""
    code = [(linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_NR)]
    for rule in rules:
        jump = linux.BPF_JSET_K if rule.test == "has any bit of" else linux.BPF_JEQ_K
        refuse_if_true = rule.test != "is not"
        code += [
            (linux.BPF_JEQ_K, 0, 4, rule.number),  # another call: on to the next rule
            (linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_ARGS + 8 * rule.index),
            (jump, 0 if refuse_if_true else 1, 1 if refuse_if_true else 0, rule.value),
            (linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ERRNO | errno.EPERM),
            (linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ALLOW),
        ]
    code.append((linux.BPF_RET_K, 0, 0, linux.SECCOMP_RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
