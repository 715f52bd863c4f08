"""A guest that prints one line and ends is heard, however late the host names its console."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
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

LATE_S = 0.5  # the kernel is at init after 0.1 s, and waits 2 s for its console


@pytest.fixture
def directory() -> Iterator[Path]:
    top = make_directory()
    yield top
    shutil.rmtree(top)


@pytest.mark.uml
def test_init_waits_until_the_host_has_named_the_console(directory: Path, uml_kernel: Kernel) -> None:
    asyncio.run(_late(directory, uml_kernel))
    assert BOOT_MARKER in (directory / "log").read_text()


async def _late(top: Path, kernel: Kernel) -> None:
    """Boot while the worker that serves the console is stopped."""
    paths = Paths(top / "r", top / "s", top / "c")
    await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        await plane.device_add(
            ConsoleDevice(
                "m/console", str(top / "vu"), os.getuid(), os.getgid(),
                str(top / "console"), str(top / "agent"), str(top / "log"), 2**20,
            )
        )  # fmt: skip
        [worker] = await plane.query_workers()
        os.kill(worker.pid, signal.SIGSTOP)
        write_boot_test(top / "initrd")
        command = [kernel.path, "mem=64M", f"initrd={top}/initrd", f"virtio_uml.device={top}/vu:3"]
        command += ["console=hvc0", "quiet", "con=null", f"uml_dir={top}/", *kernel.cmdline.split()]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as guest:  # noqa: ASYNC220
            await asyncio.sleep(LATE_S)
            assert guest.poll() is None
            os.kill(worker.pid, signal.SIGCONT)
            assert await asyncio.to_thread(guest.wait, 20) == 0
        await plane.device_del("m/console")
        await plane.quit()
        await plane.wait_closed()
