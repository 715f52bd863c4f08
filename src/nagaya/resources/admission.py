"""Whether one more machine fits the host. Every machine that is not stopped counts with all of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nagaya.errors import ResourceError
from nagaya.units import human_size

MIB = 2**20
BALLAST_SHARE = 20  # one part in so many of the host's memory stays with the host
BALLAST_MIN = 256 * MIB  # a Debian host with this daemon and its plane fits in it
OVERHEAD = 16 * MIB  # what the kernel of one User-mode Linux machine takes beyond its guest's memory


def host_memory() -> int:
    """Bytes of memory that this process's cgroup and the host have, whichever is less."""
    total = _meminfo("MemTotal")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            text = limit.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def available_memory() -> int:
    """Bytes that the kernel thinks can be had without swapping."""
    return _meminfo("MemAvailable")


def memory_limit(total: int) -> int:
    """Bytes that all machines together may be promised on a host with `total`."""
    return max(0, total - max(BALLAST_MIN, total // BALLAST_SHARE))


def need(guest_memory: int) -> int:
    """Bytes of host memory that a machine is promised."""
    return guest_memory + OVERHEAD


def admit(name: str, guest_memory: int, others: Mapping[str, int], total: int) -> None:
    """Raise `ResourceError` with the arithmetic unless `name` fits beside `others` (name to guest memory)."""
    promised = sum(need(memory) for memory in others.values())
    limit = memory_limit(total)
    if promised + need(guest_memory) <= limit:
        return
    holders = ", ".join(f"{other} {human_size(size)}" for other, size in sorted(others.items())[:8])
    free = max(0, limit - promised)
    raise ResourceError(
        f"{name} needs {human_size(need(guest_memory))} of memory ({human_size(guest_memory)} and its "
        f"overhead), {human_size(free)} are left: the host has {human_size(total)}, "
        f"{human_size(total - limit)} stay with it, "
        f"{human_size(promised)} are promised{f' ({holders})' if holders else ''}",
        hint="stop a machine, or give this one less memory",
        machine=name,
        need=need(guest_memory),
        free=free,
        host=total,
        promised=promised,
    )


def _meminfo(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ResourceError(f"/proc/meminfo has no {key}")
