"""Seccomp filters: lists of system calls, and rules on their arguments; every filter must allow a call.

What no list names fails with ENOSYS, so that a C library with newer habits falls back instead of dying.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

from nagaya.abi import linux

NEW_NAMESPACES = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)


class ArgumentRule(NamedTuple):
    """System call `number` fails with EPERM when the low word of its argument `argument` meets `test`.

    `test` is "is", "is none of", "has any bit of" or "lacks" (all bits of); only "is none of" takes several
    `values`.
    """

    number: int
    argument: int
    test: str
    values: tuple[int, ...]


def allow(groups: Mapping[str, str]) -> bytes:
    """A filter that allows the calls of all groups, names with spaces between, and no others."""
    from nagaya._core import seccomp_compile  # here: whoever only reads the lists needs no Rust core

    names = [name for group in groups.values() for name in group.split()]
    policy = {"default": f"errno:{errno.ENOSYS}", "on_match": "allow", "syscalls": names}
    return seccomp_compile(json.dumps(policy))


def assemble(rules: tuple[ArgumentRule, ...]) -> bytes:
    """A filter that enforces `rules` and allows the rest; the other filter looks at the architecture."""
    code = [(linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_NR)]
    for rule in rules:
        body = [(linux.BPF_LD_W_ABS, 0, 0, linux.SECCOMP_DATA_ARGS + 8 * rule.argument), *_test(rule)]
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
