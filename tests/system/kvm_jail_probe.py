"""Becomes a machine of the kvm engine but for the machine: a process in its jail that tries to get out.

`python kvm_jail_probe.py PLAN ROOT HOST_PID HOST_SOCKET ABSTRACT JAIL OTHER_JAIL TCP`, as root. PLAN is a
file with a launch plan, ROOT an empty directory. Prints one JSON object, as jail_probe.py does.
"""

# System calls are what is tested, so no pathlib.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import fcntl
import json
import mmap
import os
import select
import socket
import sys
import termios
import threading
import traceback

from jail_probe import (  # type: ignore[import-not-found]
    FORBIDDEN,
    attempt,
    connect,
    open_descriptors,
    syscall,
)

from nagaya.abi import linux
from nagaya.engines import jail
from nagaya.engines.plan import LaunchPlan

ALLOWED = {"memfd_create", "accept4"}  # harmless, and needed
KVM_GET_API_VERSION = 0xAE00


def attempts(names: list[str], fds: dict[str, int]) -> dict[str, str]:
    """What each way out comes to."""
    host_pid, host_socket, abstract, own_jail, other_jail, tcp = names
    ways = {
        "read /etc/passwd": lambda: open("/etc/passwd").close(),
        "list /proc": lambda: os.listdir("/proc"),
        "list /dev": lambda: os.listdir("/dev"),
        "open /dev/kvm": lambda: os.open("/dev/kvm", os.O_RDONLY),
        "list another machine's jail": lambda: os.listdir(other_jail),
        "leave through ..": lambda: open(own_jail + "/" + "../" * 30 + "etc/passwd").close(),
        "create a file in /": lambda: open("/created", "w").close(),
        "create a file in the jail": lambda: open(own_jail + "/created", "w").close(),
        "write the kernel": lambda: open("/kernel", "r+b").close(),
        "connect to the API": lambda: connect(socket.SOCK_STREAM, host_socket),
        "connect to an abstract socket": lambda: connect(socket.SOCK_STREAM, b"\0" + abstract.encode()),
        "connect by TCP": lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", int(tcp))),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        "vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM),
        "listen on a socket of its own": lambda: socket.socket(socket.AF_UNIX).bind("/sock"),
        "fork": os.fork,
        "execute": lambda: os.execv("/kernel", ["kernel"]),
        "kill a process of the host": lambda: os.kill(int(host_pid), 0),
        "map memory to execute": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "type into a terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
    }
    results = {name: attempt(action) for name, action in ways.items()}
    results |= {
        name: syscall(number, *rest) for name, (number, *rest) in FORBIDDEN.items() if name not in ALLOWED
    }
    results["ptrace a process of the host"] = syscall(101, 16, int(host_pid), 0, 0)
    return results


def works(fds: dict[str, int]) -> list[str]:
    """What a machine does need: the device, the monitor's socket, threads, event loops."""
    fcntl.ioctl(fds["kvm"], KVM_GET_API_VERSION)
    with socket.socket(fileno=fds["qmp"]) as listener:
        address = listener.getsockname()
    select.epoll().close()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return [str(address)]


def child(plan: LaunchPlan, root: str, names: list[str], report: int) -> None:
    """In the jail: try, and say."""
    fds = jail.enter(plan, root, 2, report)
    seen = {
        "descriptors": len(open_descriptors()),
        "listening": works(fds),
        "pid": os.getpid(),
    }
    os.write(report, json.dumps({"results": attempts(names, fds), "seen": seen}).encode())
    os._exit(0)


def main() -> None:
    """Fork as the zygote does."""
    with open(sys.argv[1]) as file:
        plan = LaunchPlan.from_json(json.load(file))
    read, write = os.pipe()
    pid = linux.fork(linux.CLONE_NEWPID)
    if pid == 0:
        try:
            child(plan, sys.argv[2], sys.argv[3:], write)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(write)
    with open(read) as report:
        sys.stdout.write(report.read())
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
