"""What a zygote does before its first machine leaves nothing behind but warm pages."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nagaya.kvm import machine
from nagaya.kvm.config import MachineConfig
from nagaya.kvm.rehearsal import _assemble, rehearse
from nagaya.testing.payload import build


@pytest.mark.kvm
def test_a_rehearsal_leaves_no_thread_and_no_descriptor() -> None:
    """A process with threads could not be forked into a new pid namespace."""
    rehearse()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
    rehearse()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    assert not any(name.startswith(("kvm", "vcpu")) for name in names)


@pytest.mark.kvm
def test_a_machine_with_more_memory_finds_its_tables_and_cpuid_made() -> None:
    rehearse()
    made = (machine._tables, machine._leaves)
    before = [one.cache_info().misses for one in made]
    asyncio.run(_assemble(MachineConfig("larger", "", 64 << 20, kernel=str(build("acts")))))
    assert [one.cache_info().misses for one in made] == before
