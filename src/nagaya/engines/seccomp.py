"""The seccomp filters of machines: what their host processes may ask of the host's kernel.

A hostile guest must be assumed to control its process. With User-mode Linux what is listed is what the
guest's kernel needs; guest programs' own system calls never get here: ptrace takes them before seccomp looks.
With kvm it is what the VMM's loops need: the guest's own never get here either. Two filters, both of which
must allow a call: a list of numbers (compiled by `nagaya._core`), and rules on arguments (below). The rest
fails with ENOSYS, so that a C library with newer habits falls back instead of dying.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import socket

from nagaya.abi import kvm, linux
from nagaya.seccomp import NEW_NAMESPACES, ArgumentRule, allow, assemble

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

UML_RULES = (
    ArgumentRule(linux.NR_CLONE, 0, "has any bit of", (NEW_NAMESPACES,)),
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
    return assemble(UML_RULES), allow(UML_SYSCALLS)


@functools.cache
def kvm_filters() -> tuple[bytes, ...]:
    """The programs to install for the kvm engine, in order."""
    return assemble(KVM_RULES), allow(KVM_SYSCALLS)
