"""Disks with real image files: what is written stays, through snapshots, merges, rebases and their deaths."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.daemon.attachments import attach, detach
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.disks import Disks
from nagaya.errors import ConflictError, NotFoundError, ResourceError, SpecError, UnsupportedError
from nagaya.images.chain import replace_by_link
from nagaya.models.disk import DiskInfo
from nagaya.paths import Paths
from nagaya.progress import silent
from nagaya.spec import MachineSpec
from nagaya.testing import Stage
from nagaya.testing.scratch import make_directory

pytestmark = pytest.mark.qemu
MIB = 2**20
SIZE = 8 * MIB
ROUNDS = int(os.environ.get("NAGAYA_ROUNDS", "2"))  # more on demand


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Fake machines on real disks."""
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    for directory in (paths.run, paths.state, paths.cache):
        directory.mkdir()
    yield Stage(paths)
    shutil.rmtree(top)


Scene = Callable[[Daemon, Disks], Any]


def play(stage: Stage, scene: Scene) -> None:
    async def whole(daemon: Daemon) -> None:
        await daemon.parts.images.build("one", {"kind": "fake", "n": 1}, silent)
        await daemon.parts.images.build("two", {"kind": "fake", "n": 2}, silent)
        await scene(daemon, daemon.disks)

    stage.play(whole)


def io(disk: DiskInfo, *commands: str) -> str:
    """What qemu-io says of the top layer, opened as its header says."""
    argv = ["qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), disk.path]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


async def write(disks: Disks, name: str, pattern: int, at: int, length: int = MIB) -> None:
    disk = await disks.show(name)
    await asyncio.to_thread(io, disk, f"write -P {pattern} {at} {length}")


async def content(disks: Disks, name: str, snapshot: str = "") -> bytes:
    """All bytes of a disk, by way of an export."""
    with_path = Path(make_directory())
    try:
        await disks.convert(name, with_path / "x", "raw", snapshot=snapshot, progress=silent)
        return (with_path / "x").read_bytes()
    finally:
        shutil.rmtree(with_path)


async def clean(disks: Disks, name: str) -> bool:
    report = await disks.check(name, silent, repair=False)
    return bool(report["corruptions"] == report["leaks"] == 0)


def test_snapshots_keep_what_was_and_merging_keeps_what_is(stage: Stage) -> None:
    async def scene(_daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", SIZE, "one")
        for number in range(1, 5):
            await write(disks, "data", number, (number - 1) * MIB, 2 * MIB)
            await disks.snapshot("data", f"s{number}")
        await write(disks, "data", 9, 7 * MIB)
        kept = {f"s{n}": await content(disks, "data", f"s{n}") for n in range(1, 5)}
        now = await content(disks, "data")
        assert (await disks.show("data")).layers == 5
        assert now[MIB] == 2 and now[7 * MIB] == 9 and kept["s4"][7 * MIB] == 0
        await disks.delete_snapshot("data", "s3", silent)
        await disks.delete_snapshot("data", "s2", silent)
        disk = await disks.show("data")
        assert [one["name"] for one in disk.snapshots] == ["s1", "s4"]
        assert disk.layers == 3
        assert await content(disks, "data") == now
        for name in ("s1", "s4"):
            assert await content(disks, "data", name) == kept[name]
        await disks.revert("data", "s1")
        assert await content(disks, "data") == kept["s1"]
        await disks.delete_snapshot("data", "s4", silent)
        await disks.delete_snapshot("data", "s1", silent)
        assert await content(disks, "data") == kept["s1"]
        assert (await disks.show("data")).layers <= 2
        assert await clean(disks, "data")

    play(stage, scene)


def test_a_disk_grows_and_zeroes_stay_zeroes_beyond_its_old_end(stage: Stage) -> None:
    async def scene(_daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", SIZE, "one")
        await write(disks, "data", 5, SIZE - MIB)
        await disks.resize("data", 2 * SIZE)
        await write(disks, "data", 6, 2 * SIZE - MIB)
        await disks.snapshot("data", "big")
        zeroed = await disks.show("data")
        await asyncio.to_thread(
            io, zeroed, f"write -z {2 * SIZE - MIB} {MIB}", f"write -z {SIZE - MIB} {MIB}"
        )
        await disks.delete_snapshot("data", "big", silent)
        await disks.commit("data", silent)
        after = await content(disks, "data")
        assert len(after) == 2 * SIZE and not any(after[MIB:])
        with pytest.raises(UnsupportedError, match="cannot shrink"):
            await disks.resize("data", SIZE)

    play(stage, scene)


def test_a_rebase_moves_to_another_image_or_to_none_with_the_same_content(stage: Stage) -> None:
    async def scene(daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", SIZE, "one")
        await write(disks, "data", 3, 4 * MIB)
        await disks.snapshot("data", "s")
        await write(disks, "data", 4, 5 * MIB)
        now, then = await content(disks, "data"), await content(disks, "data", "s")
        assert now.startswith(b'{"kind": "fake", "n": 1}')
        moved = await disks.rebase("data", "two", silent)
        assert moved.image == "two"
        assert await content(disks, "data") == now
        assert daemon.supervisor.images_in_use() == {daemon.parts.images.resolve("two").digest: ["disk data"]}
        flat = await disks.rebase("data", "", silent)
        assert flat.image == ""
        assert daemon.supervisor.images_in_use() == {}
        assert await content(disks, "data") == now
        assert await content(disks, "data", "s") == then

    play(stage, scene)


def test_machines_have_disks_by_name_and_keep_others_from_them(stage: Stage) -> None:
    async def scene(daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", SIZE, "")
        spec = {"name": "db", "disks": [{"image": "one"}]}
        await daemon.supervisor.create(MachineSpec.model_validate(spec))
        await attach(daemon.supervisor, "db", "data", read_only=False)
        with pytest.raises(ConflictError, match="has disk 'data' already"):
            await attach(daemon.supervisor, "db", "data", read_only=False)
        with pytest.raises(ConflictError, match="is a disk of db"):
            await disks.delete("data")
        await daemon.supervisor.start("db")
        for busy in (disks.rebase("data", "one", silent), disks.revert("data", "s"), disks.map("data", "")):
            with pytest.raises(ConflictError, match="db is running"):
                await busy
        await daemon.supervisor.kill("db")
        with (
            daemon.supervisor.disks.claim("db/disk0", "a test works on it"),
            pytest.raises(ConflictError, match="a test works on it"),
        ):
            await daemon.supervisor.start("db")
        grown = await disks.resize("db/disk0", SIZE)
        assert grown.size == SIZE
        assert daemon.supervisor.get("db").spec.disks[0].size == SIZE
        await detach(daemon.supervisor, "db", "data")
        await daemon.supervisor.delete("db")
        assert [disk.name for disk in await disks.all()] == ["data"]
        await disks.delete("data")
        assert await disks.all() == []
        assert not (stage.paths.disks / "data").exists()

    play(stage, scene)


def test_a_spec_that_grows_a_disk_keeps_its_content(stage: Stage) -> None:
    async def scene(daemon: Daemon, disks: Disks) -> None:
        def spec(size: int) -> MachineSpec:
            return MachineSpec.model_validate({"name": "db", "disks": [{"image": "one", "size": size}]})

        one = await daemon.supervisor.create(spec(SIZE))
        await write(disks, "db/disk0", 7, 4 * MIB)
        await daemon.supervisor.change(one, spec(2 * SIZE), "")
        after = await content(disks, "db/disk0")
        assert len(after) == 2 * SIZE and after[4 * MIB] == 7

    play(stage, scene)


def test_what_is_wrong_is_said(stage: Stage, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB))

    async def scene(daemon: Daemon, disks: Disks) -> None:
        with pytest.raises(NotFoundError, match="there is no disk 'none'"):
            await disks.show("none")
        with pytest.raises(SpecError, match=r"at least 1\.0 MiB, the size of image 'one'"):
            await disks.create("small", MIB // 2, "one")
        await disks.create("data", SIZE, "")
        with pytest.raises(ConflictError, match="already"):
            await disks.create("data", SIZE, "")
        with pytest.raises(NotFoundError, match="no snapshot 'x'; there is: none"):
            await disks.revert("data", "x")
        with pytest.raises(ConflictError, match="exists"):
            await disks.convert("data", raw, "vdi", snapshot="", progress=silent)
        spec = {"name": "db", "disks": [{"path": str(raw)}]}
        await daemon.supervisor.create(MachineSpec.model_validate(spec))
        with pytest.raises(UnsupportedError, match="one raw file"):
            await disks.snapshot("db/disk0", "x")
        assert (await disks.show("db/disk0")).size == MIB

    play(stage, scene)


def test_another_program_that_has_the_file_is_respected(stage: Stage) -> None:
    async def scene(_daemon: Daemon, disks: Disks) -> None:
        disk = await disks.create("data", SIZE, "")
        pipe = asyncio.subprocess.PIPE
        holder = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "qcow2", disk.path, stdin=pipe, stdout=pipe
        )
        if holder.stdin is None or holder.stdout is None:
            pytest.fail("no pipes")
        try:
            holder.stdin.write(b"read 0 512\n")
            await holder.stdout.readline()
            with pytest.raises(ConflictError, match="in use"):
                await disks.check("data", silent, repair=True)
        finally:
            holder.kill()
            await holder.communicate()

    play(stage, scene)


@pytest.mark.parametrize("file_format", ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"])
def test_an_export_is_what_other_tools_read(stage: Stage, tmp_path: Path, file_format: Any) -> None:
    async def scene(_daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", SIZE, "one")
        await write(disks, "data", 3, 4 * MIB)
        target = tmp_path / "export"
        await disks.convert("data", target, file_format, snapshot="", progress=silent)
        driver = "vpc" if file_format == "vhd" else file_format
        said = await asyncio.to_thread(read_back, driver, target)
        assert "verification failed" not in said and said.count("read 1048576/1048576") == 2
        assert list(tmp_path.iterdir()) == [target]  # noqa: ASYNC240

    play(stage, scene)


def read_back(driver: str, target: Path) -> str:
    reads = ["-c", f"read -P 3 {4 * MIB} {MIB}", "-c", f"read -P 0 {5 * MIB} {MIB}"]
    argv = ["qemu-io", "-r", "-f", driver, *reads, str(target)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.root
def test_a_full_disk_is_said_and_the_disk_is_as_before(stage: Stage, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]

    async def scene(_daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", 4 * SIZE, "one")
        await write(disks, "data", 3, 0, 28 * MIB)
        with pytest.raises(ResourceError, match="disk is full"):
            await disks.convert("data", tmp_path / "x.raw", "raw", snapshot="", progress=silent)
        assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240
        assert (await disks.show("data")).state == "free"

    subprocess.run(mount, check=True)
    try:
        play(stage, scene)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_merge_killed_before_its_record_is_finished_later(stage: Stage) -> None:
    async def scene(_daemon: Daemon, disks: Disks) -> None:
        await disks.create("data", 3 * SIZE, "one")
        await disks.snapshot("data", "s0")
        await write(disks, "data", 1, 0, 4 * MIB)
        await disks.snapshot("data", "s1")
        now = await content(disks, "data")
        record = stage.paths.disks / "data" / "disk.json"
        body = json.loads(record.read_text())
        record.write_text(json.dumps(body | {"snapshots": []}))
        replace_by_link(record.parent / "disk-1.qcow2", record.parent / "disk.qcow2")
        assert await content(disks, "data") == now
        assert (await disks.check("data", silent, repair=False))["corruptions"] == 0
        await disks.commit("data", silent)
        assert await content(disks, "data") == now

    play(stage, scene)


KILLED = """
import asyncio, json, os, signal, sys, time
from pathlib import Path
from nagaya._core import qcow2_create
from nagaya.images.chain import DiskFiles
from nagaya.images.merge import Mover, merge, change_base
from nagaya.testing.hostwork import work
directory, what = Path(sys.argv[1]), sys.argv[2]
files = DiskFiles(directory, "disk", qcow2_create, lambda digest: directory / digest)
print("go", flush=True)
quiet = lambda step, fraction: None
if what == "merge":
    asyncio.run(merge(files, Mover(work, "data"), quiet))
else:
    asyncio.run(change_base(files, "", None, Mover(work, "data"), quiet))
"""


@pytest.mark.parametrize("what", ["merge", "flatten"])
def test_a_job_killed_at_any_moment_leaves_the_disk_as_it_was(stage: Stage, what: str) -> None:
    chance = random.Random(what)

    async def scene(_daemon: Daemon, disks: Disks) -> None:
        for number in range(ROUNDS):
            name = f"d{number}"
            await disks.create(name, 3 * SIZE, "one")
            for layer in range(3):
                await write(disks, name, layer + 1, (layer * 5 + number % 4) * MIB, 10 * MIB)
                await disks.snapshot(name, f"s{layer}")
            now = await content(disks, name)
            record = stage.paths.disks / name / "disk.json"
            body = json.loads(record.read_text())
            body["snapshots"] = body["snapshots"][2:] if number % 2 else []
            record.write_text(json.dumps(body))
            for blob in stage.paths.images.glob("*.raw"):
                (record.parent / blob.stem).symlink_to(blob)
            await asyncio.to_thread(kill_midway, record.parent, what, chance.uniform(0.15, 0.7))
            assert await content(disks, name) == now
            report = await disks.check(name, silent, repair=False)
            assert report["corruptions"] == 0
            await disks.commit(name, silent)
            assert await content(disks, name) == now
            shutil.rmtree(record.parent)

    play(stage, scene)


def kill_midway(directory: Path, what: str, seconds: float) -> None:
    """Run the job in a process of its own and kill it, with all it started, after `seconds`."""
    argv = [sys.executable, "-c", KILLED, str(directory), what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as job:
        assert job.stdout is not None
        job.stdout.readline()
        try:
            job.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
