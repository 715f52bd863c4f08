"""What a guest sees of its disks: attached, grown, reverted, merged; the real plane and a real kernel."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya._core import qcow2_create
from nagaya.errors import ConflictError, UnsupportedError
from nagaya.images.chain import DiskFiles
from nagaya.images.store import Image
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.sdk import Client, Machine, ensure_daemon

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images, pytest.mark.qemu]
MIB = 2**20


@pytest.fixture
def box(client: Client) -> Iterator[Machine]:
    """A running BusyBox machine with a disk of its own and `data`."""
    client.disks.create("data", 64 * MIB)
    spec = {"name": "box", "memory": "64MiB", "disks": [{"image": "busybox"}, {"disk": "data"}]}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    yield machine
    machine.delete(force=True)
    client.disks.delete("data")


def run(machine: Machine, command: str) -> str:
    done = machine.exec(["sh", "-c", command])
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


def again(machine: Machine) -> None:
    machine.start()
    machine.wait("agent", 60)


def test_a_guest_finds_its_disks_grown_and_reverted_with_their_content(client: Client, box: Machine) -> None:
    disks = client.disks
    run(box, "echo first > /root/file; echo one | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; sync")
    assert disks.resize("data", "96MiB").size == 96 * MIB
    assert grown(box, "vdb", 96 * MIB)
    run(box, f"echo far | dd of=/dev/vdb bs=1M seek={96 - 1} conv=notrunc,fsync 2>/dev/null")
    assert run(box, f"dd if=/dev/vdb bs=1M skip={96 - 1} 2>/dev/null | head -c 3") == "far"
    box.stop(20)
    disks.snapshot("box/disk0", "before")
    disks.snapshot("data", "before")
    assert disks.resize("data", "128MiB").size == 128 * MIB
    again(box)
    assert run(box, "cat /sys/block/vdb/size; head -c 3 /dev/vdb; cat /root/file") == "262144\none" + "first"
    run(box, "rm /root/file; echo two | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; sync")
    run(box, f"echo end | dd of=/dev/vdb bs=1M seek={128 - 1} conv=notrunc,fsync 2>/dev/null")
    box.stop(20)
    now = disks.get("data")
    disks.delete_snapshot("data", "before").wait()
    assert disks.get("data").layers <= now.layers
    disks.revert("box/disk0", "before")
    again(box)
    assert run(box, "cat /root/file; head -c 3 /dev/vdb") == "first\ntwo"
    assert run(box, f"dd if=/dev/vdb bs=1M skip={128 - 1} 2>/dev/null | head -c 3") == "end"
    box.stop(20)
    for disk in ("data", "box/disk0"):
        report = disks.check(disk).wait()
        assert (report["corruptions"], report["leaks"]) == (0, 0)


def grown(machine: Machine, name: str, size: int) -> bool:
    """Whether the guest sees the size soon: it is told by an interrupt, and looks in its own time."""
    look = f"[ $(cat /sys/block/{name}/size) = {size // 512} ] && echo yes && break"
    return run(machine, f"for i in $(seq 100); do {look}; sleep 0.1; done") == "yes"


def test_a_raw_disk_grows_under_its_guest(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "data.img"
    image.write_bytes(bytes(8 * MIB))
    spec = {"name": "raw", "memory": "64MiB", "disks": [{"image": "busybox"}, {"path": str(image)}]}
    machine = client.machines.create(spec, start=True).wait("agent", 60)
    try:
        run(machine, "echo one | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null")
        assert client.disks.resize("raw/disk1", 16 * MIB).size == 16 * MIB
        assert grown(machine, "vdb", 16 * MIB)
        run(machine, "echo far | dd of=/dev/vdb bs=1M seek=15 conv=notrunc,fsync 2>/dev/null")
        assert (image.read_bytes()[:3], image.read_bytes()[15 * MIB :][:3]) == (b"one", b"far")
        with pytest.raises(UnsupportedError, match="cannot shrink"):
            client.disks.resize("raw/disk1", 8 * MIB)
        machine.stop(20)
        assert client.disks.resize("raw/disk1", 32 * MIB).size == 32 * MIB
    finally:
        machine.delete(force=True)


def test_snapshots_are_merged_under_a_guest_that_writes(client: Client, box: Machine, tmp_path: Path) -> None:
    disks = client.disks
    run(box, f"({WRITER}) >/dev/null 2>&1 &")
    for number in range(4):
        run(box, f"dd if=/dev/urandom of=/root/f{number} bs=1M count=3 2>/dev/null; sync")
        disks.snapshot("box/disk0", f"s{number}")
    sums = run(box, "cd /root; md5sum f*")
    kept = {name: exported(client, name, tmp_path) for name in ("s0", "s3")}
    assert disks.get("box/disk0").layers == 5
    for name in ("s1", "s2"):
        before = written(box)
        disks.delete_snapshot("box/disk0", name).wait()
        assert written(box) >= before
    assert disks.get("box/disk0").layers == 3
    assert {name: exported(client, name, tmp_path) for name in kept} == kept
    os.kill(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    disks.delete_snapshot("box/disk0", "s3").wait()
    disks.delete_snapshot("box/disk0", "s0").wait()
    assert disks.commit("box/disk0").wait() is not None
    run(box, "echo 3 > /proc/sys/vm/drop_caches")
    assert run(box, "cd /root; md5sum f*") == sums
    assert run(box, "dmesg | grep -ci 'i/o error' || true") == "0"
    box.stop(20)
    report = disks.check("box/disk0").wait()
    assert (report["corruptions"], report["leaks"]) == (0, 0)
    again(box)
    assert run(box, "cd /root; md5sum f*") == sums


def written(machine: Machine) -> int:
    """How far the writer is; the file is empty for a moment each time."""
    return int(run(machine, 'until n=$(cat /root/n); [ "$n" ]; do :; done; echo $n'))


def exported(client: Client, snapshot: str, directory: Path) -> str:
    """The digest of a snapshot of the box's root."""
    target = directory / "export.raw"
    client.disks.convert("box/disk0", target, "raw", snapshot=snapshot).wait()
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    target.unlink()
    return digest


WRITER = "i=0; while :; do i=$((i + 1)); echo $i > /root/n; sync; echo $i > /root/m; sync; done"


def test_a_snapshot_of_a_machine_that_works_is_consistent_and_it_notices_nothing(
    client: Client, box: Machine, tmp_path: Path
) -> None:
    disks = client.disks
    run(box, f"({WRITER}) >/dev/null 2>&1 & echo before > /root/file; sync")
    seen = []
    for number in range(3):
        taken = disks.snapshot("box/disk0", f"s{number}").snapshots[-1]
        assert taken["consistency"] == "filesystem"
        seen.append(int(run(box, "cat /root/m")))
    disks.snapshot("data", "d0")
    run(box, "echo later > /root/file; echo two | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; sync")
    assert seen == sorted(seen) and int(run(box, "cat /root/n")) > seen[-1] > 0
    assert run(box, "dmesg | grep -ci 'i/o error' || true") == "0"
    disks.convert("box/disk0", tmp_path / "s1.raw", "raw", snapshot="s1").wait()
    checked = subprocess.run(
        ["/usr/sbin/e2fsck", "-fn", tmp_path / "s1.raw"], capture_output=True, text=True, check=False
    )
    assert "FILE SYSTEM WAS MODIFIED" not in checked.stdout and checked.returncode in (0, 4), checked.stdout
    box.stop(20)
    disks.revert("box/disk0", "s1")
    again(box)
    assert run(box, "cat /root/file; head -c 3 /dev/vdb") == "before\ntwo"
    assert seen[0] <= int(run(box, "cat /root/n")) <= seen[2] + 2
    box.stop(20)
    for name in ("s0", "s1", "s2"):
        disks.delete_snapshot("box/disk0", name).wait()
    assert disks.get("box/disk0").layers <= 2
    assert disks.check("box/disk0").wait()["corruptions"] == 0


def test_a_daemon_killed_in_a_snapshot_leaves_a_guest_that_writes(client: Client, box: Machine) -> None:
    record = client.paths.machine(box.id).state / "disk0.json"
    client.disks.snapshot("box/disk0", "s0")
    body = json.loads(record.read_text())
    host = client.host()
    os.kill(host.daemon_pid, signal.SIGKILL)
    # As if it had died between the record and the plane: the record has one more layer.
    files = DiskFiles(
        record.parent, "disk0", qcow2_create, lambda digest: client.paths.images / f"{digest}.raw"
    )
    pushed = files.push(files.record())
    files.write(pushed)
    (client.paths.machine(box.id).run / "frozen").touch()
    ensure_daemon(client.paths)
    box.wait("agent", 60)
    run(box, "echo after > /root/file; sync")
    assert client.disks.get("box/disk0").path.endswith(pushed.top)
    assert Path(client.disks.get("box/disk0").path).stat().st_blocks > 512
    assert not (client.paths.machine(box.id).run / "frozen").exists()
    assert body["snapshots"][0]["name"] == "s0"
    box.stop(20)
    client.disks.delete_snapshot("box/disk0", "s0").wait()
    again(box)
    assert run(box, "cat /root/file") == "after"


def test_a_disk_moves_between_machines_and_a_rebased_root_still_boots(
    client: Client, box: Machine, tmp_path: Path
) -> None:
    disks = client.disks
    run(box, "echo moved | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null; echo kept > /root/file; sync")
    box.stop(20)
    disks.detach("box", "data")
    disks.rebase("box/disk0", "").wait()
    assert disks.get("box/disk0").image == ""
    other = client.machines.create({"name": "other", "memory": "64MiB", "disks": [{"image": "busybox"}]})
    try:
        disks.attach("other", "data")
        again(other)
        again(box)
        assert run(other, "head -c 5 /dev/vdb") == "moved"
        assert run(box, "cat /root/file; ls /dev/vd*") == "kept\n/dev/vda"
        target = tmp_path / "box.vdi"
        with pytest.raises(ConflictError, match="box is running"):
            disks.convert("box/disk0", target, "vdi").wait()
    finally:
        other.delete(force=True)
    disks.attach("box", "data") if box.stop(20).state == "stopped" else pytest.fail("it runs")


def test_an_exported_disk_comes_back_as_an_image_that_boots(
    client: Client, box: Machine, tmp_path: Path, paths: Paths, uml_kernel: Kernel, busybox_image: Image
) -> None:
    run(box, "echo golden > /root/file; sync")
    box.stop(20)
    client.disks.convert("box/disk0", tmp_path / "golden.vmdk", "vmdk").wait()
    client.images.import_file("golden", tmp_path / "golden.vmdk").wait()
    try:
        spec = {"name": "copy", "memory": "64MiB", "disks": [{"image": "golden"}]}
        copy = client.machines.create(spec, start=True).wait("agent", 60)
        assert run(copy, "cat /root/file") == "golden"
        copy.delete(force=True)
    finally:
        client.images.remove("golden")
