"""The argument filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import mmap
import os
import re
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nagaya.abi import kvm, linux
from nagaya.engines.seccomp import (
    KVM_IOCTLS,
    KVM_RULES,
    KVM_SYSCALLS,
    UML_RULES,
    UML_SYSCALLS,
    kvm_filters,
    uml_filters,
)
from nagaya.seccomp import ArgumentRule, assemble

EPERM = linux.SECCOMP_RET_ERRNO | 1
BPF_JA = 0x05
SECURITY = Path(__file__).parents[3] / "docs" / "security.md"


def run(program: bytes, number: int, *arguments: int) -> int:
    """What `program` returns for a system call."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    memory = struct.pack("=IIQ6Q", number, 0xC000003E, 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        if operation == linux.BPF_LD_W_ABS:
            (accumulator,) = struct.unpack_from("=I", memory, value)
        elif operation == linux.BPF_JEQ_K:
            at += true if accumulator == value else false
        elif operation == linux.BPF_JSET_K:
            at += true if accumulator & value else false
        elif operation == linux.BPF_AND_K:
            accumulator &= value
        elif operation == BPF_JA:
            at += value
        else:
            assert operation == linux.BPF_RET_K
            return int(value)


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (linux.NR_SOCKET, (socket.AF_UNIX, 1, 0), linux.SECCOMP_RET_ALLOW),
        (linux.NR_SOCKET, (socket.AF_INET, 1, 0), EPERM),
        (linux.NR_SOCKET, (socket.AF_INET | 1 << 32, 1, 0), EPERM),
        (linux.NR_SOCKETPAIR, (socket.AF_UNIX, 1, 0), linux.SECCOMP_RET_ALLOW),
        (linux.NR_SOCKETPAIR, (socket.AF_NETLINK, 1, 0), EPERM),
        (linux.NR_CLONE, (0x11,), linux.SECCOMP_RET_ALLOW),
        (linux.NR_CLONE, (0x11 | linux.CLONE_NEWUSER,), EPERM),
        (linux.NR_CLONE, (linux.CLONE_NEWNET,), EPERM),
        (linux.NR_KILL, (1, signal.SIGABRT), EPERM),
        (linux.NR_KILL, (1, signal.SIGKILL), linux.SECCOMP_RET_ALLOW),
        (linux.NR_KILL, (signal.SIGABRT, 0), linux.SECCOMP_RET_ALLOW),
        (0, (0, 0, 0), linux.SECCOMP_RET_ALLOW),
    ],
)
def test_rules_of_user_mode_linux(number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert run(assemble(UML_RULES), number, *arguments) == expected


KVM_CAP_SOMETHING = 0x4040AEFF  # _IOW(KVMIO, 0xff, 64 bytes): none of KVM's that we use
TIOCSTI = 0x5412


@pytest.mark.parametrize(
    ("number", "arguments", "expected"),
    [
        (linux.NR_IOCTL, (3, kvm.KVM_RUN), linux.SECCOMP_RET_ALLOW),
        (linux.NR_IOCTL, (3, KVM_IOCTLS[0]), linux.SECCOMP_RET_ALLOW),
        (linux.NR_IOCTL, (3, KVM_IOCTLS[-1]), linux.SECCOMP_RET_ALLOW),
        (linux.NR_IOCTL, (3, linux.FIONBIO), linux.SECCOMP_RET_ALLOW),
        (linux.NR_IOCTL, (3, linux.FIOCLEX), linux.SECCOMP_RET_ALLOW),
        (linux.NR_IOCTL, (3, TIOCSTI), EPERM),
        (linux.NR_IOCTL, (3, KVM_CAP_SOMETHING), EPERM),
        (linux.NR_CLONE, (0x3D0F00,), linux.SECCOMP_RET_ALLOW),  # what pthread_create passes
        (linux.NR_CLONE, (0x11,), EPERM),  # fork
        (linux.NR_SOCKET, (socket.AF_VSOCK, 1, 0), EPERM),
        (linux.NR_OPENAT, (-100 & 0xFFFFFFFF, 0, os.O_RDONLY | os.O_CLOEXEC), linux.SECCOMP_RET_ALLOW),
        (linux.NR_OPENAT, (-100 & 0xFFFFFFFF, 0, os.O_RDWR), EPERM),
        (linux.NR_MMAP, (0, 4096, mmap.PROT_READ | mmap.PROT_WRITE), linux.SECCOMP_RET_ALLOW),
        (linux.NR_MMAP, (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC), EPERM),
        (linux.NR_MPROTECT, (0, 4096, mmap.PROT_EXEC), EPERM),
        (0, (0, 0, 0), linux.SECCOMP_RET_ALLOW),
    ],
)
def test_rules_of_kvm(number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert run(assemble(KVM_RULES), number, *arguments) == expected


def test_the_ioctls_of_kvm_are_those_of_its_abi() -> None:
    assert kvm.KVM_SET_USER_MEMORY_REGION in KVM_IOCTLS
    assert kvm.KVM_CAP_IRQCHIP not in KVM_IOCTLS
    assert 30 < len(KVM_IOCTLS) < 80


@pytest.mark.parametrize("rules", [UML_RULES, KVM_RULES])
def test_no_number_has_two_rules(rules: tuple[ArgumentRule, ...]) -> None:
    numbers = [rule.number for rule in rules]
    assert len(numbers) == len(set(numbers)), "the first rule of a number decides alone"


def test_no_rules_allow_everything() -> None:
    assert run(assemble(()), 41, 2) == linux.SECCOMP_RET_ALLOW
    assert run(assemble((ArgumentRule(41, 5, "is", (7,)),)), 41, 0, 0, 0, 0, 0, 7) == EPERM


OUTWARD = {
    *(
        "mount",
        "unshare",
        "setns",
        "bpf",
        "io_uring_setup",
        "process_vm_writev",
        "clone3",
        "prctl",
        "pivot_root",
    ),
    *("perf_event_open", "userfaultfd", "keyctl", "init_module", "kexec_load", "chroot", "pidfd_getfd"),
}


@pytest.mark.parametrize("groups", [UML_SYSCALLS, KVM_SYSCALLS])
def test_no_system_call_is_listed_twice_and_none_that_leads_out(groups: dict[str, str]) -> None:
    names = [name for group in groups.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert not OUTWARD & {*names}


def test_the_system_calls_of_a_kvm_machine_are_those_that_the_documentation_lists() -> None:
    arguments, numbers = kvm_filters()
    known = {number: name for name, number in _system_calls().items()}
    passing = {known.get(nr, str(nr)) for nr in range(1024) if run(numbers, nr) == linux.SECCOMP_RET_ALLOW}
    section = SECURITY.read_text().split("## The process of the engine `kvm`")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in section.splitlines() if re.match(r"\| [a-z].*\| `", line)]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(passing)
    assert all(run(arguments, nr) in (linux.SECCOMP_RET_ALLOW, EPERM) for nr in range(1024))


def _system_calls() -> dict[str, int]:
    """Name to number, from the C library's header by the compiler's preprocessor."""
    command = ["gcc", "-E", "-dM", "-x", "c", "-"]
    header = subprocess.run(
        command, input="#include <sys/syscall.h>", capture_output=True, text=True, check=True
    ).stdout
    found = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", header, re.M)}
    assert found["read"] == 0
    return found


def test_a_kvm_machine_starts_no_program_and_signals_no_process() -> None:
    names = {name for group in KVM_SYSCALLS.values() for name in group.split()}
    assert not {"execve", "execveat", "fork", "vfork", "kill", "ptrace", "setuid", "unlink", "rename"} & names


@pytest.mark.parametrize("filters", [uml_filters, kvm_filters])
def test_both_filters_are_whole_programs(filters: Callable[[], tuple[bytes, ...]]) -> None:
    assert len(filters()) == 2
    assert all(program and len(program) % 8 == 0 for program in filters())
