"""Moves the memory of a guest that runs: to swap and back, into huge pages and out, to another NUMA node.

Nothing here is asked of the guest, and nothing is lost: a page that is touched meanwhile waits for its move.
Every function says what it achieved by the host's own counters; it may be less than was asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nagaya.abi import memory as abi
from nagaya.errors import ResourceError, UnavailableError, UnsupportedError
from nagaya.resources import topology
from nagaya.resources.cgroups import Cgroup
from nagaya.resources.guestmemory import GuestMemory, Where
from nagaya.units import human_size

MIB = 2**20
HUGE = 2 * MIB  # of x86-64
_PAGE = 4096
_STEP = 16 * MIB  # reclaimed at once; between two the machine's limit is its own
_CHUNK = 1 * MIB  # read at once
_ATTEMPTS = 16  # to reclaim something: as many as the kernel makes for memory.reclaim
_PASSING = (errno.EINVAL, errno.EAGAIN, errno.EBUSY, errno.ENOMEM)  # of one piece: the others go on
_THP = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Relocated:
    """Bytes that were to be moved and those that were, by the counters `before` and `after`; and how."""

    asked: int
    done: int
    how: str
    before: Where
    after: Where


def page_out(pid: int, size: int, group: Cgroup | None = None) -> Relocated:
    """Put about `size` bytes of a guest's memory into the host's swap, the coldest first.

    By its control group, whose reclaim knows what is cold; without a memory controller by the process's
    addresses, which leaves what several processes have mapped. Raises `UnavailableError` without swap.
    """
    free = swap_free()
    if free < min(size, _STEP):
        raise UnavailableError(
            f"the host's swap has {human_size(free)} left, it cannot take {human_size(size)}",
            hint="add swap to the host: a file, or zram (swapon)",
            free=free,
        )
    with GuestMemory(pid) as guest:
        before = guest.where()
        wanted = min(size, before.resident, free)
        how = _reclaim(guest, wanted, group)
        after = guest.where()
    return Relocated(size, max(0, after.swapped - before.swapped), how, before, after)


def bring_back(pid: int) -> Relocated:
    """Read all that is swapped out back into memory; what the guest never used stays away."""
    with GuestMemory(pid) as guest:
        before = guest.where()
        if before.swapped:
            for offset, length in guest.pieces():
                for at in range(offset, offset + length, _CHUNK):
                    os.pread(guest.fd, min(_CHUNK, offset + length - at), at)
        after = guest.where()
    return Relocated(before.swapped, max(0, before.swapped - after.swapped), "read", before, after)


def collapse(pid: int) -> Relocated:
    """Make huge pages of all that a guest uses in whole pieces of 2 MiB; holes stay holes.

    Raises `UnavailableError` if the host allows no huge pages of shared memory.
    """
    with GuestMemory(pid) as guest:
        before = guest.where()
        pieces = list(_whole(guest))
        refused = _advise(guest, pieces, HUGE, abi.MADV_COLLAPSE, "make huge pages")
        after = guest.where()
    if pieces and refused == len(pieces):
        raise UnavailableError(
            "this host makes no huge pages of shared memory",
            hint=f"echo advise > {_THP}",
        )
    asked = len(pieces) * HUGE - before.huge
    return Relocated(max(0, asked), max(0, after.huge - before.huge), "MADV_COLLAPSE", before, after)


def split(pid: int) -> Relocated:
    """Make pages of 4 KiB of huge pages again, where this process alone has them mapped.

    Advice on one page of a huge one has the kernel split it; MADV_COLD moves nothing by itself.
    """
    with GuestMemory(pid) as guest:
        before = guest.where()
        _advise(guest, _whole(guest) if before.huge else (), _PAGE, abi.MADV_COLD, "split huge pages")
        after = guest.where()
    return Relocated(before.huge, max(0, before.huge - after.huge), "MADV_COLD", before, after)


def move(pid: int, node: int, group: Cgroup | None = None, sysfs: Path | None = None) -> Relocated:
    """Move a guest's memory to a NUMA node, what it has and what it will get (cpuset.mems).

    Raises `UnsupportedError` if the host has no such node, `ResourceError` if that has too little free.
    """
    nodes = {one.id: one for one in (topology.nodes(sysfs) if sysfs else topology.nodes())}
    if node not in nodes:
        raise UnsupportedError(
            f"this host has no NUMA node {node}: it has {', '.join(map(str, nodes))}",
            hint="`nagaya host` shows the nodes",
            field="node",
        )
    with GuestMemory(pid) as guest:
        before = guest.where()
        elsewhere = sum(size for one, size in before.nodes.items() if one != node)
        free = nodes[node].free
        if elsewhere > free:
            raise ResourceError(
                f"{human_size(elsewhere)} are on other nodes, node {node} has {human_size(free)} free",
                hint="choose another node, or move another machine away from it",
                node=node,
            )
        if group is not None:
            group.set_memory_nodes(frozenset({node}))
        try:
            abi.migrate_pages(guest.span.pid, [one for one in nodes if one != node] or [node], [node])
        except OSError as error:
            raise _failed(f"move memory to node {node}", error) from error
        after = guest.where()
    done = max(0, after.nodes.get(node, 0) - before.nodes.get(node, 0))
    return Relocated(elsewhere, done, "migrate_pages", before, after)


def prefer(node: int | None, group: Cgroup | None) -> None:
    """Have the memory that a machine gets from now on come from `node`; None: from anywhere."""
    if group is not None:
        group.set_memory_nodes([one.id for one in topology.nodes()] if node is None else [node])


def swap_free(meminfo: Path = _MEMINFO) -> int:
    """Bytes that the host's swap can still take; 0 without swap."""
    return _swap(meminfo).get("SwapFree", 0)


def swap_in_use(meminfo: Path = _MEMINFO) -> bool:
    """Whether anything is swapped out on the host."""
    swap = _swap(meminfo)
    return swap.get("SwapTotal", 0) > swap.get("SwapFree", 0)


def _swap(meminfo: Path) -> dict[str, int]:
    lines = (line.partition(":") for line in meminfo.read_text().splitlines() if line.startswith("Swap"))
    return {name: int(value.split()[0]) * 1024 for name, _, value in lines}


def _reclaim(guest: GuestMemory, size: int, group: Cgroup | None) -> str:
    memory = group.groups.get("memory") if group is not None else None
    if memory is not None and (memory / "memory.reclaim").exists():
        _by_reclaim(memory / "memory.reclaim", size)
        return "memory.reclaim"
    if memory is not None and (memory / "memory.limit_in_bytes").exists():
        _by_limit(memory, size)
        return "memory.limit_in_bytes"
    _advise(guest, list(_whole(guest))[: size // HUGE], HUGE, abi.MADV_PAGEOUT, "page out")
    return "MADV_PAGEOUT"


def _advise(guest: GuestMemory, pieces: Iterable[int], length: int, advice: int, what: str) -> int:
    """The same advice on the beginning of each piece; returns how many the kernel refused for good.

    A piece may be in use or no longer be there, and is then left as it is.
    """
    refused = 0
    with _pidfd(guest.span.pid) as fd:
        for address in pieces:
            try:
                abi.process_madvise(fd, address, length, advice)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise _failed(what, error) from error
                refused += error.errno == errno.EINVAL
    return refused


def _by_reclaim(file: Path, size: int) -> None:
    for at in range(0, size, _STEP):
        try:
            file.write_text(str(min(_STEP, size - at)))
        except OSError as error:
            if error.errno != errno.EAGAIN:  # less than that could be had
                raise
            return


def _by_limit(memory: Path, size: int) -> None:
    """v1 has no file for it. A limit below the usage makes the kernel reclaim first and then take the limit
    (mem_cgroup_resize_max), so that it is in effect for no longer than from one write to the next.
    """
    limit, usage = memory / "memory.limit_in_bytes", memory / "memory.usage_in_bytes"
    usual = limit.read_text().strip()
    goal = max(0, int(usage.read_text()) - size)
    refused = 0
    for _ in range(2 * (size // _STEP + 1) + _ATTEMPTS):  # a guest that takes memory does not keep us here
        used = int(usage.read_text())
        if used < goal + _PAGE or refused == _ATTEMPTS:
            return
        try:
            limit.write_text(str(max(goal, used - _STEP)))
            refused = 0
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            refused += 1  # all that it looked at was just used; it looks at more the next time
        finally:
            limit.write_text(usual)


def _whole(guest: GuestMemory) -> Iterator[int]:
    """Addresses of the pieces of 2 MiB that hold something everywhere."""
    start = guest.span.start
    for offset, length in guest.pieces():
        first = -(-(start + offset) // HUGE) * HUGE
        yield from range(first, start + offset + length - HUGE + 1, HUGE)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise _failed("find the machine's process", error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _failed(what: str, error: OSError) -> UnavailableError:
    hint = "this needs a daemon that is root's" if error.errno == errno.EPERM else ""
    return UnavailableError(f"the host cannot {what}: {error.strerror}", hint=hint)
