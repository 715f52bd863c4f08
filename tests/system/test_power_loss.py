"""A host loses its power under a Linux guest with ext4, at one flush after the other.

The journal alone repairs the file system, and what the guest was told is durable is there. The guest writes
the number of each file that it has synced behind the file system, so the log of writes says what was promised
when. `NAGAYA_POWER_LOSSES=5000` tries every flush.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nagaya.kernel import Kernel
from nagaya.testing.disks import core, serve
from nagaya.testing.powerloss import losses, read_log
from nagaya.testing.yard import write_initrd

pytestmark = [pytest.mark.uml, pytest.mark.images]

POINTS = int(os.environ.get("NAGAYA_POWER_LOSSES", "200"))
SEED = 5
MIB = 2**20
FILE_SYSTEM, TAIL = 8 * MIB, 64 * 1024
FILES = 60
# Each file says its number, is synced and moved, and some go. Meanwhile another process writes without end:
# there is always something on its way.
INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec > /dev/tty0 2>&1
while [ ! -b /dev/vda ]; do sleep 0.1; done
mkdir /tmp
mount -t ext4 /dev/vda /mnt || echo GUEST-FAILED mount
mkdir /mnt/noise
(while :; do
    i=$(( (i + 1) % 20 ))
    head -c 30000 /dev/urandom > /mnt/noise/$i
    rm -f /mnt/noise/$(( (i + 7) % 20 ))
done) &
n=0
while [ $n -lt {FILES} ]; do
    n=$((n + 1))
    yes "file $n" | head -c $((n * 997 % 20000 + 100)) | dd of=/mnt/new bs=4096 conv=fsync 2> /dev/null
    mv /mnt/new /mnt/f$n
    [ $((n % 4)) = 0 ] && rm /mnt/f$((n / 2)) 2> /dev/null
    if [ $((n % 5)) = 0 ]; then sync; else dd if=/dev/null of=/mnt/f$n conv=notrunc,fsync 2> /dev/null; fi
    yes $n | head -c 512 > /tmp/mark
    at=$(({FILE_SYSTEM} / 512 + n))
    dd if=/tmp/mark of=/dev/vda bs=512 seek=$at oflag=direct conv=notrunc 2> /tmp/err \\
        || echo GUEST-FAILED mark $(cat /tmp/err)
done
dd if=/dev/null of=/dev/vda conv=notrunc,fsync 2> /dev/null
echo GUEST-DONE
poweroff -f
"""


def test_ext4_survives_at_every_flush(
    directory: Path, uml_kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    image, log = directory / "disk.raw", directory / "log"
    image.touch()
    os.truncate(image, FILE_SYSTEM)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-J", "size=1", image], check=True)
    os.truncate(image, FILE_SYSTEM + TAIL)
    before = image.read_bytes()
    _work(directory, uml_kernel, image, log)
    epochs = read_log(log)
    tried = 0
    for flushes, content in losses(before, epochs, POINTS, SEED):
        _check(directory / "after", content, f"after {flushes} of {len(epochs)} flushes")
        tried += 1
    with capsys.disabled():
        print(f"\n{tried} losses of power, {len(epochs)} flushes, {_promised(content)} files promised")
    assert _promised(content) == FILES and tried > min(POINTS, 100)


def _work(directory: Path, kernel: Kernel, image: Path, log: Path) -> None:
    """Have a guest work on the disk until it is done."""
    initrd, socket, console = directory / "initrd", directory / "disk.sock", directory / "console"
    write_initrd(initrd, INIT.encode())
    log.touch()
    with core() as plane:
        serve(plane, socket, {"raw": image}, write_log=log)
        command = [kernel.path, "mem=64M", f"initrd={initrd}", f"virtio_uml.device={socket}:2"]
        command += ["con0=null,fd:1", "con=null", "quiet", f"umid={directory.name}", f"uml_dir={directory}/"]
        with console.open("wb") as said:
            guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            guest.wait(120)
        finally:
            guest.kill()
            guest.wait()
        plane.device_del("disk0")
    said_text = console.read_text(errors="replace")
    assert "GUEST-DONE" in said_text and "GUEST-FAILED" not in said_text, said_text


def _check(path: Path, content: bytes, when: str) -> None:
    """The journal repairs the file system, after which it is without a fault, and has what was promised."""
    path.write_bytes(content[:FILE_SYSTEM])
    replayed = subprocess.run(["e2fsck", "-p", path], capture_output=True, text=True, check=False)
    assert replayed.returncode in (0, 1), f"{when}: {replayed.stdout}"
    checked = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"{when}: {checked.stdout}"
    promised = _promised(content)
    wanted = [number for number in range(1, promised + 1) if not _may_be_gone(number, promised)]
    script = "".join(f"cat /f{number}\n" for number in wanted)
    found = subprocess.run(
        ["debugfs", "-f", "-", path], input=script.encode(), capture_output=True, check=True
    )
    text = b"\n".join(line for line in found.stdout.split(b"\n") if not line.startswith(b"debugfs:"))
    for number in wanted:
        body = (f"file {number}\n" * 4000).encode()[: number * 997 % 20000 + 100]
        assert body in text, f"{when}: file {number} of {promised}"


def _promised(content: bytes) -> int:
    """The last file whose number is written behind the file system."""
    marks = [content[FILE_SYSTEM + 512 * number :][:512].split() for number in range(1, FILES + 1)]
    return max(
        (number for number, mark in enumerate(marks, 1) if mark[:1] == [str(number).encode()]), default=0
    )


def _may_be_gone(number: int, promised: int) -> bool:
    """Whether the guest has removed it, or is about to."""
    return 2 * number <= promised + 4 and (2 * number) % 4 == 0
