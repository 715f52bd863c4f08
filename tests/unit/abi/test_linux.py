"""Constants against the system's headers, where they are installed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nagaya.abi import linux

INCLUDE = Path("/usr/include")
PREFIXES = ("CLONE_", "MS_", "PR_", "SECCOMP_", "PTRACE_", "NT_", "ADDR_", "MNT_")
HEADERS = (
    "linux/sched.h",
    "linux/mount.h",
    "linux/prctl.h",
    "linux/seccomp.h",
    "linux/ptrace.h",
    "linux/elf.h",
)
DEFINITION = re.compile(
    r"^#\s*define\s+(\w+)\s+\(?(0x[0-9a-fA-F]+|\d+)U?L?(?:\s*<<\s*(\d+))?\)?\s*(?:/\*.*)?$"
)


def _defined(name: str) -> dict[str, int]:
    path = INCLUDE / name
    if not path.exists():
        pytest.skip(f"{path} is not installed (package linux-libc-dev)")
    found = {}
    for line in path.read_text().splitlines():
        match = DEFINITION.match(line.split("/*")[0].rstrip())
        if match:
            found[match[1]] = int(match[2], 0) << int(match[3] or 0)
    return found


def test_constants_are_the_headers() -> None:
    header = {name: value for one in HEADERS for name, value in _defined(one).items()}
    ours = {name: value for name, value in vars(linux).items() if name.startswith(PREFIXES)}
    compared = {name for name in ours if name in header}
    assert len(compared) > 20
    assert {name: ours[name] for name in compared} == {name: header[name] for name in compared}


def test_system_call_numbers_are_the_headers() -> None:
    header = _defined("x86_64-linux-gnu/asm/unistd_64.h")
    ours = {name: value for name, value in vars(linux).items() if name.startswith("NR_")}
    assert ours == {name: header[f"__NR_{name[3:].lower()}"] for name in ours}


def test_a_refused_call_raises_with_its_name() -> None:
    with pytest.raises(OSError, match="setns: ") as caught:
        linux.setns(-1, linux.CLONE_NEWNET)
    assert caught.value.errno == 9


def test_close_range_closes() -> None:
    reader, writer = os.pipe()
    copy = os.dup2(reader, 900)
    other = os.dup2(writer, 901)
    linux.close_range(copy, other)
    for fd in (copy, other):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.close(reader)
    os.close(writer)
