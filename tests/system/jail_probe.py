"""Runs inside a machine's jail in the kernel's place, and tries what a guest that took over its kernel would
try.

Prints one JSON object: what it saw, and for each attempt the name of the error, or "done" if nothing stopped
it.
"""

# System calls are what is tested, so no pathlib.
# ruff: noqa: PTH108, PTH123, PTH208

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)

# x86-64 system calls that no User-mode Linux needs, by number (asm/unistd_64.h), with harmless arguments
FORBIDDEN: dict[str, tuple[int, *tuple[int | bytes, ...]]] = {
    "chroot": (161, b"/ram"),
    "pivot_root": (155, b"/ram", b"/ram"),
    "mount": (165, b"none", b"/ram", b"tmpfs", 0, 0),
    "umount2": (166, b"/ram", 2),
    "open_tree": (428, -100, b"/", 1),
    "fsopen": (430, b"tmpfs", 0),
    "unshare user": (272, 0x10000000),
    "unshare net": (272, 0x40000000),
    "setns": (308, 0, 0),
    "clone in a new user namespace": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "setuid": (105, 0),
    "setresuid": (117, 0, 0, 0),
    "setgroups": (116, 0, 0),
    "capset": (126, 0, 0),
    "prctl": (157, 38, 0, 0, 0, 0),
    "seccomp": (317, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "keyctl": (250, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 8, 0),
    "userfaultfd": (323, 0),
    "memfd_create": (319, b"x", 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "pidfd_open": (434, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "open_by_handle_at": (304, 0, 0, 0),
    "mknod": (133, b"/ram/device", 0o20666, 0x0103),
    "mknodat": (259, -100, b"/ram/device", 0o20666, 0x0103),
    "link": (86, b"/ram/a", b"/ram/b"),
    "symlink": (88, b"/etc/passwd", b"/ram/link"),
    "chmod": (90, b"/ram", 0o777),
    "chown": (92, b"/ram", 0, 0),
    "init_module": (175, 0, 0, b""),
    "kexec_load": (246, 0, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "swapon": (167, b"/ram", 0),
    "iopl": (172, 3),
    "ioperm": (173, 0x80, 1, 1),
    "acct": (163, 0),
    "quotactl": (179, 0, 0, 0, 0),
    "settimeofday": (164, 0, 0),
    "sethostname": (170, b"x", 1),
    "sched_setaffinity": (203, 0, 8, b"\xff" * 8),
    "sched_setscheduler": (144, 0, 1, b"\1\0\0\0"),
    "setpriority": (141, 0, 0, -20),
    "ioprio_set": (251, 1, 0, 0),
    "shmget": (29, 1, 4096, 0o1600),
    "mq_open": (240, b"x", 0o102, 0o600, 0),
    "accept4": (288, 0, 0, 0, 0),
    "listen": (50, 0, 1),
    "name_to_handle_at": (303, -100, b"/", 0, 0, 0),
    "personality": (135, 0),
    "vmsplice": (278, 0, 0, 0, 0),
    "get_mempolicy": (239, 0, 0, 0, 0, 0),
    "syslog": (103, 3, 0, 0),
    "x32 getpid": (0x40000000 | 39,),
}


def syscall(number: int, *arguments: int | bytes) -> str:
    """Name of the error, or "done"."""
    ctypes.set_errno(0)
    values = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *values)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"


def attempt(action: Callable[[], object]) -> str:
    """The same for Python's own calls."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def connect(kind: int, address: object) -> None:
    """Connect a socket and close it."""
    family = socket.AF_UNIX if isinstance(address, str | bytes) else socket.AF_INET
    with socket.socket(family, kind) as one:
        one.connect(address)  # type: ignore[arg-type]


def open_descriptors() -> list[int]:
    """What was inherited."""
    found = []
    for fd in range(1024):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return found


def fill_memory_tmpfs() -> int:
    """Bytes that fit into the guest's memory directory before it is full."""
    written = 0
    with open("/ram/fill", "wb", buffering=0) as file:
        try:
            while written < 2**30:
                written += file.write(b"\1" * 2**20)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    os.unlink("/ram/fill")
    return written


def main() -> None:
    """Everything, with the host's pid, socket and directories as arguments."""
    descriptors = open_descriptors()
    host_pid, host_socket, abstract, jail, other_jail = sys.argv[1:6]
    tcp = int(sys.argv[6])
    own = {
        "read /etc/passwd": lambda: open("/etc/passwd").close(),
        "read /etc/shadow": lambda: open("/etc/shadow").close(),
        "list /proc/self": lambda: os.listdir("/proc/self"),
        "list /sys": lambda: os.listdir("/sys"),
        "list /dev": lambda: os.listdir("/dev"),
        "list another machine's jail": lambda: os.listdir(other_jail),
        "leave through ..": lambda: open(jail + "/" + "../" * 30 + "etc/passwd").close(),
        "create a file in /": lambda: open("/created", "w").close(),
        "create a file in the jail": lambda: open(jail + "/created", "w").close(),
        "write the kernel": lambda: open("/linux", "r+b").close(),
        "connect to the API": lambda: connect(socket.SOCK_STREAM, host_socket),
        "connect to an abstract socket": lambda: connect(socket.SOCK_STREAM, b"\0" + abstract.encode()),
        "connect by TCP": lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", tcp)),
        "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
        "AF_ALG socket": lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET),
        "kill a process of the host": lambda: os.kill(int(host_pid), 0),
        "kill process 2": lambda: os.kill(2, 0),
    }
    results = {name: attempt(action) for name, action in own.items()}
    results |= {name: syscall(number, *rest) for name, (number, *rest) in FORBIDDEN.items()}
    results["raise the limit of open files"] = syscall(302, 0, 7, struct.pack("2Q", 65536, 65536), 0)
    results["ptrace a process of the host"] = syscall(101, 16, int(host_pid), 0, 0)
    seen = {
        "descriptors": descriptors,
        "root": sorted(os.listdir("/")),
        "proc": sorted(os.listdir("/proc")),
        "jail": sorted(os.listdir(jail)),
        "pid": os.getpid(),
        "hostname": os.uname().nodename,
        "ram": fill_memory_tmpfs(),
    }
    os.write(1, json.dumps({"results": results, "seen": seen}).encode() + b"\n")


if __name__ == "__main__":
    main()
