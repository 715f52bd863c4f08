"""A guest that prints one line and ends is heard, however late the host names its console."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.images.initramfs import BOOT_MARKER, write_boot_test
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import ConsoleDevice
from nagaya.plane.launch import ensure_holder
from nagaya.testing.scratch import make_directory
from nagaya.testing.workers import worker_pids

BOOTS = 30  # without the patch about one in three of these is silent


@pytest.fixture
def directory() -> Iterator[Path]:
    top = make_directory()
    yield top
    shutil.rmtree(top)


@pytest.mark.uml
def test_init_waits_until_the_host_has_named_the_console(directory: Path, uml_kernel: Kernel) -> None:
    asyncio.run(_boots(directory, uml_kernel))
    assert (directory / "log").read_text().count(BOOT_MARKER) == BOOTS


async def _boots(top: Path, kernel: Kernel) -> None:
    """Boot beside a worker that runs only while the guest sleeps: its answers come as late as can be."""
    paths = Paths(top / "r", top / "s", top / "c")
    await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        await plane.device_add(
            ConsoleDevice(
                "m/console", str(top / "vu"), os.getuid(), os.getgid(),
                str(top / "console"), str(top / "agent"), str(top / "log"), 2**20,
            )
        )  # fmt: skip
        [worker] = (await worker_pids(plane)).values()
        cpu = min(os.sched_getaffinity(0))
        os.sched_setaffinity(worker, {cpu})
        os.sched_setscheduler(worker, os.SCHED_IDLE, os.sched_param(0))
        write_boot_test(top / "initrd")
        command = ["taskset", "-c", str(cpu), kernel.path, "mem=64M", f"initrd={top}/initrd"]
        command += [f"virtio_uml.device={top}/vu:3", "console=hvc0", "quiet", "con=null", f"uml_dir={top}/"]
        command += kernel.cmdline.split()
        for _ in range(BOOTS):
            guest = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
            )
            assert await asyncio.wait_for(guest.wait(), 30) == 0
        await plane.device_del("m/console")
        await plane.quit()
        await plane.wait_closed()
