"""Core scheduling: threads of different machines never run on two threads of one core at the same time.

A cookie of a machine's own is made in its first process and inherited by all others (Linux,
Documentation/admin-guide/hw-vuln/core-scheduling.rst). Where the kernel has none, or cores have one thread,
there is nothing to do.
"""

from __future__ import annotations

import ctypes
import errno
from enum import StrEnum

from nagaya.abi import linux


class Cores(StrEnum):
    """What there is of it on a host."""

    COOKIES = "each machine has a cookie of its own"
    SINGLE = "cores have one thread each: there is nothing to share"
    NONE = "the kernel has none (CONFIG_SCHED_CORE)"


def probe() -> Cores:
    """Ask for this process's cookie."""
    cookie = ctypes.c_uint64()
    try:
        linux.prctl(linux.PR_SCHED_CORE, linux.PR_SCHED_CORE_GET, 0, 0, ctypes.addressof(cookie))
    except OSError as error:
        return Cores.SINGLE if error.errno == errno.ENODEV else Cores.NONE
    return Cores.COOKIES


def separate() -> bool:
    """Give this process, and what it forks from now on, a new cookie. False where there are none."""
    try:
        linux.prctl(
            linux.PR_SCHED_CORE, linux.PR_SCHED_CORE_CREATE, 0, linux.PR_SCHED_CORE_SCOPE_THREAD_GROUP
        )
    except OSError:
        return False
    return True
