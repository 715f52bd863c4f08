"""A guest that writes a qcow2 header on its raw disk gains nothing: formats are said, never looked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nagaya.paths import Paths
from nagaya.sdk import Client, Machine

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images, pytest.mark.qemu]

DISK = 8 * 2**20
SECRET = b"root:the host's own:\n"


@pytest.fixture
def header(paths: Paths) -> bytes:
    """An image of 1 GiB that shows a file of the host to whoever reads it, as QEMU does where it guesses."""
    secret, evil = paths.state / "secret", paths.state / "evil.qcow2"
    secret.write_bytes(SECRET + bytes(DISK))
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(evil), "1G"]
    subprocess.run(create, check=True)
    flat = paths.state / "flat"
    subprocess.run(["qemu-img", "convert", "-O", "raw", evil, flat], check=True)
    with flat.open("rb") as file:
        assert file.read(len(SECRET)) == SECRET
    return evil.read_bytes()


def test_a_header_on_a_raw_disk_is_content(client: Client, paths: Paths, header: bytes) -> None:
    raw = paths.state / "own.raw"
    raw.touch()
    os.truncate(raw, DISK)
    disks = [{"image": "busybox"}, {"path": str(raw)}, {"size": "8MiB"}]
    box = client.machines.create({"name": "box", "memory": "64MiB", "disks": disks}, start=True)
    box.wait("agent", 60)
    for disk in ("vdb", "vdc"):
        _shell(box, f"cat > /dev/{disk}; sync", header)
    assert raw.read_bytes().startswith(header)
    for hard in (True, False):
        box.restart(hard=hard).wait("agent", 60)
        for disk in ("vdb", "vdc"):
            assert _shell(box, f"blockdev --getsize64 /dev/{disk}").strip() == str(DISK).encode()
            same = f"cat > /run/want; head -c {len(header)} /dev/{disk} | cmp - /run/want"
            assert _shell(box, same, header) == b""
    box.stop(30)
    assert raw.stat().st_size == DISK
    _check(paths.machine(box.id).disk(2))


def _shell(box: Machine, command: str, stdin: bytes = b"") -> bytes:
    done = box.exec(["sh", "-c", command], stdin=stdin)
    assert done.exit_code == 0, (command, done.stdout[:500], done.stderr[:500])
    return done.stdout


def _check(overlay: Path) -> None:
    checked = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", overlay], capture_output=True, text=True, check=False
    )
    assert checked.returncode in (0, 3), checked.stdout
