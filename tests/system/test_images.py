"""Images and kernels are what their builders promise: the same bytes again, whole after a kill, bootable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nagaya.errors import BuildError, ResourceError
from nagaya.images.build import build
from nagaya.images.kernels import default_uml_kernel, list_kernels
from nagaya.images.recipe import Recipe
from nagaya.images.store import Image, ImageStore
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.progress import silent
from nagaya.testing.listening import is_listening

BUSYBOX = Recipe(kind="busybox")


def fresh(top: Path, shared: Paths) -> Paths:
    """A store of its own, with the shared caches."""
    return Paths(top / "run", top / "state", shared.cache)


def test_busybox_is_the_same_bytes_each_time(tmp_path: Path, shared_paths: Paths) -> None:
    one = asyncio.run(build(fresh(tmp_path / "a", shared_paths), "one", BUSYBOX, silent))
    umask = os.umask(0o077)
    try:
        two = asyncio.run(build(fresh(tmp_path / "b", shared_paths), "two", BUSYBOX, silent))
    finally:
        os.umask(umask)
    assert one.digest == two.digest
    check = subprocess.run(["/usr/sbin/e2fsck", "-fn", one.path], capture_output=True, check=False, text=True)
    assert check.returncode == 0, check.stdout


def test_an_equal_recipe_is_built_once(tmp_path: Path, shared_paths: Paths) -> None:
    paths = fresh(tmp_path, shared_paths)
    steps: list[list[str]] = [[], []]

    async def both() -> tuple[Image, Image]:
        return await asyncio.gather(
            build(paths, "one", BUSYBOX, lambda step, _fraction: steps[0].append(step)),
            build(paths, "two", BUSYBOX, lambda step, _fraction: steps[1].append(step)),
        )

    one, two = asyncio.run(both())
    assert one.digest == two.digest
    assert sum("gather the files" in each for each in steps) == 1
    assert [image.name for image in ImageStore(paths).all()] == ["one", "two"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, shared_paths: Paths) -> None:
    state = tmp_path / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(state)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs root to mount a small tmpfs")
    try:
        paths = Paths(tmp_path / "run", state, shared_paths.cache)
        with pytest.raises(ResourceError, match="disk is full"):
            asyncio.run(build(paths, "one", BUSYBOX, silent))
        assert ImageStore(paths).all() == []
        assert list(paths.images.glob("work/*")) == list(paths.images.glob("*.raw")) == []
    finally:
        subprocess.run(["umount", state], check=True)


BUILD = """
import asyncio, sys
from pathlib import Path
from nagaya.images.build import build
from nagaya.images.recipe import Recipe
from nagaya.paths import Paths
state, cache = map(Path, sys.argv[1:])
paths = Paths(state / "run", state, cache)
asyncio.run(build(paths, "cut", Recipe(run=("sleep 600",)), lambda step, fraction: print(step, flush=True)))
"""


def _family_with(pid: int, name: str) -> list[psutil.Process]:
    """The descendants of `pid`, once one of them is called `name`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        family = psutil.Process(pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):  # a step's process may end meanwhile
            if any(process.name() == name for process in family):
                return family
        time.sleep(0.05)
    raise AssertionError(f"process {pid} started no {name} within 60 s")


@pytest.mark.root
@pytest.mark.images
def test_a_killed_build_ends_whole_and_leaves_nothing(
    tmp_path: Path, shared_paths: Paths, debian_image: Image
) -> None:
    paths = Paths(tmp_path / "state" / "run", tmp_path / "state", shared_paths.cache)
    command = [sys.executable, "-c", BUILD, str(paths.state), str(paths.cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        for step in builder.stdout:
            if step.startswith("run the recipe"):
                break
        try:
            family = _family_with(builder.pid, "sleep")
        finally:
            builder.send_signal(signal.SIGKILL)
    _gone, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    assert str(paths.state) not in Path("/proc/mounts").read_text()
    asyncio.run(build(paths, "next", BUSYBOX, silent))
    assert [image.name for image in ImageStore(paths).all()] == ["next"]
    assert list(paths.images.glob("work/*")) == []


@pytest.mark.root
@pytest.mark.images
def test_a_command_of_the_recipe_that_fails_fails_the_build(tmp_path: Path, debian_image: Image) -> None:
    paths = Paths(tmp_path / "run", tmp_path / "state", Path(debian_image.path).parents[2] / "cache")
    with pytest.raises(BuildError) as caught:
        asyncio.run(build(paths, "bad", Recipe(run=("echo before", "false")), silent))
    assert "false" in caught.value.hint
    assert ImageStore(paths).all() == []


@pytest.mark.root
@pytest.mark.images
def test_debian_is_the_same_bytes_each_time(tmp_path: Path, shared_paths: Paths, debian_image: Image) -> None:
    again = asyncio.run(build(fresh(tmp_path, shared_paths), "again", Recipe(), silent))
    assert again.digest == debian_image.digest


@contextmanager
def disk(image: Image, top: Path) -> Iterator[Path]:
    """A vhost-user disk with a copy of `image`; yields its socket."""
    copy, socket = top / "disk.raw", top / "d.sock"
    subprocess.run(["cp", "--sparse=always", image.path, copy], check=True)
    copy.chmod(0o600)
    export = f"type=vhost-user-blk,id=e,node-name=r,addr.type=unix,addr.path={socket},writable=on"
    command = [
        *("qemu-storage-daemon", "--blockdev", f"driver=file,filename={copy},node-name=f"),
        *("--blockdev", "driver=raw,node-name=r,file=f", "--export", export),
    ]
    with subprocess.Popen(command) as daemon:
        while not is_listening(socket):
            assert daemon.poll() is None, "qemu-storage-daemon does not start"
            time.sleep(0.01)
        yield socket
        daemon.terminate()


def boot(kernel: Kernel, image: Image, top: Path, memory: str, end: str) -> str:
    """What a bare kernel with that disk prints until `end`, or until it switches itself off."""
    with disk(image, top) as socket:
        command = [
            *(
                "setarch",
                "-R",
                kernel.path,
                *kernel.cmdline.split(),
                f"mem={memory}",
                f"uml_dir={top}/",
                "con=null",
            ),
            *("con0=null,fd:1", "console=tty0", "root=/dev/vda", "rw", f"virtio_uml.device={socket}:2"),
            *("nagaya.hostname=guest", *([f"initrd={kernel.initrd}"] if kernel.initrd else [])),
        ]
        printed = ""
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as guest:
            assert guest.stdout is not None
            for line in guest.stdout:
                printed += line
                if end in line:
                    break
            family = [psutil.Process(guest.pid), *psutil.Process(guest.pid).children(recursive=True)]
            for process in family:
                process.kill()
        return printed


@pytest.mark.uml
@pytest.mark.qemu
def test_busybox_boots_on_our_kernel(tmp_path: Path, uml_kernel: Kernel, busybox_image: Image) -> None:
    printed = boot(uml_kernel, busybox_image, tmp_path, "64M", "root login on 'tty0'")
    assert "nagaya: init started" in printed
    assert "root login on 'tty0'" in printed
    assert "panic" not in printed.lower()


@pytest.mark.uml
@pytest.mark.qemu
@pytest.mark.images
def test_debian_boots_on_our_kernel(tmp_path: Path, uml_kernel: Kernel, debian_image: Image) -> None:
    printed = boot(uml_kernel, debian_image, tmp_path, "512M", "Reached target \x1b[0;1;39mmulti-user.target")
    assert "multi-user.target" in printed
    assert "FAILED" not in printed


@pytest.mark.uml
def test_our_kernel_is_the_default_and_names_no_file_of_the_host(paths: Paths, uml_kernel: Kernel) -> None:
    assert default_uml_kernel(paths).path == uml_kernel.path
    assert uml_kernel in list_kernels(paths)
    config = (Path(uml_kernel.path).parent / "config").read_text()
    for dropped in ("HOSTFS", "BLK_DEV_UBD", "MODULES", "PORT_CHAN", "XTERM_CHAN"):
        assert f"CONFIG_{dropped}=y" not in config
