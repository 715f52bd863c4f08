"""A real Linux guest on the plane: it does disk I/O while the worker that serves it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.kernel import Kernel

BUSYBOX = Path("/bin/busybox")
DISK_MIB = 64

# Writes the disk with another pattern each round, drops the cache, and reads it back. Four at once, so that
# the queue is deep; buffered, so that the kernel merges and orders as it does for any guest.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while [ ! -b /dev/vda ]; do sleep 0.1; done
cat /proc/sys/kernel/random/uuid >/tmp/seed
echo GUEST-READY
round=0
while [ $round -lt ROUNDS ]; do
    for part in 0 1 2 3; do
        (yes "$(cat /tmp/seed) $round $part" | head -c 16777216 >/tmp/want$part
        dd if=/tmp/want$part of=/dev/vda bs=64k seek=$((part * 256)) conv=fsync 2>/tmp/err$part \\
            || echo GUEST-FAILED write $part) &
    done
    wait
    echo 3 >/proc/sys/vm/drop_caches
    for part in 0 1 2 3; do
        dd if=/dev/vda bs=64k skip=$((part * 256)) count=256 2>/dev/null | cmp - /tmp/want$part \\
            || echo GUEST-FAILED compare $part
    done
    round=$((round + 1))
    echo GUEST-ROUND $round
done
dmesg | grep -i 'i/o error' && echo GUEST-FAILED dmesg
echo GUEST-DONE
poweroff -f
"""


@pytest.mark.uml
@pytest.mark.images
def test_a_linux_guest_does_not_notice_that_its_worker_is_killed(
    plane: _core.Plane, directory: Path, uml_kernel: Kernel
) -> None:
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, DISK_MIB << 20)
    vhost = directory / "disk.sock"
    _serve(plane, vhost, image)
    initramfs = directory / "initramfs"
    initramfs.write_bytes(_initramfs(rounds=4))
    command = [uml_kernel.path, "mem=256M", f"initrd={initramfs}", f"virtio_uml.device={vhost}:2"]
    command += ["con0=null,fd:1", "con=null", "quiet", f"umid={directory.name}", f"uml_dir={directory}/"]
    with (directory / "console").open("wb") as console:
        guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        _wait_for(directory / "console", b"GUEST-READY", guest)
        kills = _kill_workers(plane, guest, seconds=60)
    finally:
        guest.kill()
        guest.wait()
    said = (directory / "console").read_bytes().decode(errors="replace")
    assert "GUEST-DONE" in said and "GUEST-FAILED" not in said, said
    assert kills >= 10, f"the guest was done after {kills} kills"


def _serve(plane: _core.Plane, path: Path, image: Path) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            config = {
                "driver": "blk", "id": "guest/disk0", "worker": "disk", "queues": 1, "queue_size": 256,
                "read_only": False, "serial": "", "direct": True, "layers": [{"format": "raw"}],
            }  # fmt: skip
            plane.device_add(json.dumps(config), [listener.fileno(), fd])
    finally:
        os.close(fd)


def _kill_workers(plane: _core.Plane, guest: subprocess.Popen[bytes], seconds: float) -> int:
    """Kill whatever worker there is, at random moments, until the guest is done; returns how often."""
    chance = random.Random(5)
    kills = 0
    deadline = time.monotonic() + seconds
    while guest.poll() is None:
        assert time.monotonic() < deadline, f"the guest is not done after {seconds} s and {kills} kills"
        time.sleep(chance.uniform(0.01, 0.2))
        pid = json.loads(plane.query())["workers"][0]["pid"]
        if pid:
            with contextlib.suppress(ProcessLookupError):  # it may just have ended by itself
                os.kill(pid, signal.SIGKILL)
            kills += 1
    return kills


def _wait_for(path: Path, text: bytes, guest: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while text not in path.read_bytes():
        if guest.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"no {text!r}: {path.read_bytes().decode(errors='replace')}")
        time.sleep(0.05)


def _initramfs(rounds: int) -> bytes:
    """A root file system of busybox and the script above, as cpio (newc)."""
    files = {
        "bin": (stat.S_IFDIR | 0o755, b""),
        "bin/busybox": (stat.S_IFREG | 0o755, BUSYBOX.read_bytes()),
        "init": (stat.S_IFREG | 0o755, INIT.replace("ROUNDS", str(rounds)).encode()),
        "TRAILER!!!": (0, b""),
    }
    archive = bytearray()
    for inode, (name, (mode, body)) in enumerate(files.items(), 1):
        fields = [inode, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + "".join(f"{field:08x}" for field in fields).encode()
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += body
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
