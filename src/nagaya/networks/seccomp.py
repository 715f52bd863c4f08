"""What the programs that serve networks may ask of the host's kernel: guests talk to them.

`python -m nagaya.networks.seccomp PROGRAM ARGUMENT...` runs a program with dnsmasq's filters, which hold for
whatever it becomes or starts.
"""

from __future__ import annotations

import functools
import mmap
import os
import socket
import sys
from collections.abc import Iterable

from nagaya.abi import linux
from nagaya.seccomp import NEW_NAMESPACES, ArgumentRule, allow, assemble

# Seen in strace of a start by prlimit and setpriv, DHCP, router advertisements, names by UDP and TCP, SIGHUP
# and the end, and in dnsmasq's source.
DNSMASQ_SYSCALLS = {
    "start and end": "execve brk arch_prctl set_tid_address set_robust_list rseq prlimit64 uname getrandom"
    " chdir umask setsid exit exit_group restart_syscall",
    "it gives up rights": "setgroups setresuid setresgid setuid setgid getuid geteuid getgid getegid"
    " getresuid getresgid capget capset prctl",
    "files": "openat access faccessat2 readlink readlinkat read pread64 write writev close lseek fstat"
    " newfstatat statx fstatfs statfs getdents64 fcntl dup dup2 fchown inotify_init1 inotify_add_watch"
    " inotify_rm_watch",
    "memory": "mmap munmap mprotect mremap madvise",
    "a child for each connection by TCP": "clone wait4 kill getpid getppid gettid pipe2 futex",
    "signals and time": "rt_sigaction rt_sigprocmask rt_sigreturn alarm clock_gettime clock_nanosleep"
    " gettimeofday time",
    "packets": "socket bind listen accept accept4 connect shutdown getsockname getpeername getsockopt"
    " setsockopt sendto sendmsg recvfrom recvmsg poll ppoll ioctl",
}
_INTERFACES = {  # linux/sockios.h: what it asks of interfaces, and the ARP entry for whom it gives an address
    "SIOCGSTAMP": 0x8906,
    "SIOCGIFNAME": 0x8910,
    "SIOCGIFFLAGS": 0x8913,
    "SIOCGIFADDR": 0x8915,
    "SIOCGIFMTU": 0x8921,
    "SIOCGIFHWADDR": 0x8927,
    "SIOCGIFINDEX": 0x8933,
    "SIOCSARP": 0x8955,
    "TCGETS": 0x5401,  # whether a file is a terminal
    "FIOCLEX": linux.FIOCLEX,
}
_REPLACE_TABLES = 64  # IPT_SO_SET_REPLACE, IP6T_SO_SET_REPLACE: packet filters by setsockopt
_DOMAINS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
# 0 is NETLINK_ROUTE, and no netlink has the others' numbers. Not TCP's by name: 6 is NETLINK_XFRM too.
_PROTOCOLS = (0, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6)
DNSMASQ_RULES = (
    ArgumentRule(linux.NR_SOCKET, 0, "is none of", _DOMAINS),
    ArgumentRule(linux.NR_IOCTL, 1, "is none of", tuple(_INTERFACES.values())),
    ArgumentRule(linux.NR_CLONE, 0, "has any bit of", (NEW_NAMESPACES,)),
    ArgumentRule(linux.NR_SETSOCKOPT, 2, "is", (_REPLACE_TABLES,)),
)
DNSMASQ_PROTOCOLS = (ArgumentRule(linux.NR_SOCKET, 2, "is none of", _PROTOCOLS),)

# Seen in strace of requests and of what is refused; everything is imported before.
METADATA_SYSCALLS = {
    "connections": "listen accept4 recvfrom sendto shutdown getsockname getpeername getsockopt setsockopt"
    " close",
    "the event loop": "epoll_create1 epoll_ctl epoll_wait socketpair fcntl ioctl write rt_sigaction"
    " rt_sigprocmask rt_sigreturn sigaltstack restart_syscall",
    "documents": "openat read fstat newfstatat lseek",
    "memory": "brk mmap munmap mremap madvise mprotect futex",
    "time, randomness and the end": "clock_gettime clock_nanosleep getrandom getpid gettid exit_group",
}
METADATA_RULES = (
    ArgumentRule(linux.NR_SOCKETPAIR, 0, "is none of", (socket.AF_UNIX,)),
    ArgumentRule(linux.NR_IOCTL, 1, "is none of", (linux.FIONBIO, linux.FIOCLEX, _INTERFACES["TCGETS"])),
    ArgumentRule(linux.NR_OPENAT, 2, "has any bit of", (os.O_WRONLY | os.O_RDWR | os.O_CREAT,)),
    ArgumentRule(linux.NR_MMAP, 2, "has any bit of", (mmap.PROT_EXEC,)),
    ArgumentRule(linux.NR_MPROTECT, 2, "has any bit of", (mmap.PROT_EXEC,)),
)


@functools.cache
def dnsmasq_filters() -> tuple[bytes, ...]:
    """The programs to install for dnsmasq, in order."""
    return assemble(DNSMASQ_RULES), assemble(DNSMASQ_PROTOCOLS), allow(DNSMASQ_SYSCALLS)


@functools.cache
def metadata_filters() -> tuple[bytes, ...]:
    """The programs to install for the metadata service, in order."""
    return assemble(METADATA_RULES), allow(METADATA_SYSCALLS)


def install(filters: Iterable[bytes]) -> None:
    """This process, and what it starts, is bound by all of them for ever. Raises `OSError`."""
    for program in filters:
        linux.seccomp_install(program)


if __name__ == "__main__":
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    install(dnsmasq_filters())
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - this is the point
