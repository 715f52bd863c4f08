"""The argument filter, run by a small interpreter of classic BPF."""

from __future__ import annotations

import signal
import socket
import struct

import pytest

from nagaya.abi import linux
from nagaya.engines.seccomp import ARGUMENT_RULES, UML_SYSCALLS, ArgumentRule, assemble, uml_filters

EPERM = linux.SECCOMP_RET_ERRNO | 1


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
def test_argument_rules(number: int, arguments: tuple[int, ...], expected: int) -> None:
    assert run(assemble(ARGUMENT_RULES), number, *arguments) == expected


def test_no_number_has_two_rules() -> None:
    numbers = [rule.number for rule in ARGUMENT_RULES]
    assert len(numbers) == len(set(numbers)), "the first rule of a number decides alone"


def test_no_rules_allow_everything() -> None:
    assert run(assemble(()), 41, 2) == linux.SECCOMP_RET_ALLOW
    assert run(assemble((ArgumentRule(41, 5, "is", 7),)), 41, 0, 0, 0, 0, 0, 7) == EPERM


def test_no_system_call_is_listed_twice_and_none_that_leads_out() -> None:
    names = [name for group in UML_SYSCALLS.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert not {
        "mount",
        "unshare",
        "setns",
        "bpf",
        "io_uring_setup",
        "process_vm_writev",
        "clone3",
        "prctl",
    } & {*names}


def test_both_filters_are_whole_programs() -> None:
    filters = uml_filters()
    assert len(filters) == 2
    assert all(program and len(program) % 8 == 0 for program in filters)
