"""Guest RAM."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from pathlib import Path

import pytest

from nagaya.errors import ResourceError, UsageError
from nagaya.hw import layout
from nagaya.kvm.memory import HUGE_PAGE, GuestMemory

MIB = layout.MIB


def test_what_is_written_is_read() -> None:
    with GuestMemory(MIB) as memory:
        memory.write(0x1000, b"guest")
        assert memory.read(0x0FFF, 7) == b"\0guest\0"
        memory.view(0x1000, 5)[0] = ord("q")
        assert memory.read(0x1000, 5) == b"quest"


def test_the_file_is_sealed() -> None:
    with GuestMemory(MIB) as memory:
        for size in (0, 2 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_memory_costs_nothing_until_it_is_touched() -> None:
    with GuestMemory(64 * layout.GIB) as memory:
        memory.write(5 * layout.GIB, b"x")
        assert os.fstat(memory.fd).st_blocks * 512 == layout.PAGE


def test_memory_that_can_be_plugged_lies_behind_all_else_in_the_same_file() -> None:
    with GuestMemory(16 * MIB, hot=layout.GIB) as memory:
        boot, hot = memory.regions
        assert (boot.size, memory.size) == (16 * MIB, 16 * MIB)
        assert (hot.address, hot.size, hot.offset) == (layout.HIGH_RAM, layout.GIB, 16 * MIB)
        memory.write(hot.address + hot.size - 4, b"last")
        assert os.pread(memory.fd, 4, 16 * MIB + layout.GIB - 4) == b"last"
        assert os.fstat(memory.fd).st_blocks * 512 == layout.PAGE
    with pytest.raises(UsageError), GuestMemory(MIB, hot=5):
        pass


@pytest.mark.parametrize(
    ("ram", "start"), [(MIB, 4), (3 * layout.GIB, 4), (4 * layout.GIB, 6), (5 * layout.GIB, 6)]
)
def test_memory_is_plugged_above_4_gib_and_all_of_ram(ram: int, start: int) -> None:
    assert layout.hot_start(ram) == start * layout.GIB


def test_more_than_3_gib_continue_above_4_gib() -> None:
    with GuestMemory(layout.LOW_RAM_END + MIB) as memory:
        low, high = memory.regions
        assert (low.address, low.size, low.offset) == (0, layout.LOW_RAM_END, 0)
        assert (high.address, high.size, high.offset) == (layout.HIGH_RAM, MIB, layout.LOW_RAM_END)
        assert high.host == low.host + layout.LOW_RAM_END
        memory.write(layout.HIGH_RAM, b"high")
        assert os.pread(memory.fd, 4, high.offset) == b"high"


@pytest.mark.parametrize(
    ("address", "size"), [(MIB, 1), (MIB - 1, 2), (-1, 1), (0, -1), (2**64, 1), (layout.HIGH_RAM, 1)]
)
def test_what_is_not_all_ram_is_refused(address: int, size: int) -> None:
    with GuestMemory(MIB) as memory, pytest.raises(UsageError, match="are not in the guest's 1MiB"):
        memory.view(address, size)


def test_ram_does_not_reach_across_the_hole() -> None:
    with GuestMemory(layout.LOW_RAM_END + MIB) as memory, pytest.raises(UsageError):
        memory.read(layout.LOW_RAM_END - 1, 2)


@pytest.mark.parametrize("size", [0, -4096, 4095, 4097])
def test_an_odd_size_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="no multiple of 4KiB"):
        GuestMemory(size)


def test_core_dumps_leave_it_out() -> None:
    with GuestMemory(MIB) as memory:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        start = next(at for at, line in enumerate(lines) if line.startswith(f"{memory.regions[0].host:x}-"))
        flags = next(line for line in lines[start:] if line.startswith("VmFlags"))
        assert "dd" in flags.split()


def test_memory_that_cannot_be_had_is_a_clear_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(ResourceError, match="2MiB of guest memory cannot be had"):
            GuestMemory(2 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_address_space_that_cannot_be_had_is_a_clear_error() -> None:
    with pytest.raises(ResourceError, match="cannot be"):
        GuestMemory(1 << 60)


def test_huge_pages_are_given_or_refused_at_once() -> None:
    try:
        memory = GuestMemory(HUGE_PAGE, huge_pages=True)
    except ResourceError as error:
        assert "vm.nr_hugepages" in error.hint
        free = next(
            line
            for line in Path("/proc/meminfo").read_text().splitlines()
            if line.startswith("HugePages_Free")
        )
        assert int(free.split()[1]) == 0
    else:
        with memory:
            memory.write(0, b"x")
            assert os.fstat(memory.fd).st_blocks * 512 == HUGE_PAGE


def test_huge_pages_need_a_multiple() -> None:
    with pytest.raises(UsageError, match="no multiple of 2MiB"):
        GuestMemory(HUGE_PAGE + layout.PAGE, huge_pages=True)


def test_a_numa_node_is_bound() -> None:
    if not Path("/sys/devices/system/node/node0").exists():
        with pytest.raises(ResourceError, match="NUMA node 0"):
            GuestMemory(MIB, numa_node=0)
        return
    with GuestMemory(MIB, numa_node=0) as memory:
        start = f"{memory.regions[0].host:x} "
        policy = next(
            line for line in Path("/proc/self/numa_maps").read_text().splitlines() if line.startswith(start)
        )
        assert "bind:0" in policy


def test_a_numa_node_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(ResourceError, match="NUMA node 1000") as caught:
        GuestMemory(MIB, numa_node=1000)
    assert (
        os.strerror(errno.EINVAL) in caught.value.message or os.strerror(errno.ENOSYS) in caught.value.message
    )


def test_it_does_not_close_under_a_view() -> None:
    memory = GuestMemory(MIB)
    with memory.view(0, 1), pytest.raises(BufferError):
        memory.close()
    memory.close()
