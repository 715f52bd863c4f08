"""Disk images of all formats become base images; hostile ones fail, confined, and leave nothing."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nagaya.abi import linux
from nagaya.daemon.uids import tool_uid
from nagaya.errors import ConflictError, NagayaError, SpecError
from nagaya.images import confined
from nagaya.images.confined import Plan
from nagaya.images.importing import import_image
from nagaya.images.qemuimg import Node, QemuImg, graph
from nagaya.images.store import Image, ImageStore
from nagaya.images.tools import find_tool
from nagaya.paths import Paths
from nagaya.plane.imagelock import Access, lock_image
from nagaya.progress import Progress, silent
from nagaya.testing.hostwork import work
from nagaya.testing.scratch import make_directory

pytestmark = pytest.mark.qemu
MIB = 2**20
NOBODY = 65534


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A raw disk of 4 MiB whose content is known, with a hole."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(4).randbytes(MIB))
    os.truncate(path, 3 * MIB)
    with path.open("ab") as file:
        file.write(b"end".ljust(MIB, b"."))
    return path


def import_into(top: Path, source: Path, progress: Progress = silent, stated: str | None = None) -> Image:
    """Import `source` into a store of its own below `top`."""
    paths = Paths(top / "r", top / "s", top / "c")
    store, qemu = ImageStore(paths), QemuImg(tool_uid(paths))
    made = import_image(store, qemu, "disk", source, stated, work=work, progress=progress)  # type: ignore[arg-type]
    return asyncio.run(made)


def in_format(disk: Path, driver: str) -> Path:
    target = disk.with_suffix(f".{driver}")
    options = ["-o", "force_size=on"] if driver == "vpc" else []
    subprocess.run(["qemu-img", "convert", "-O", driver, *options, disk, target], check=True)
    target.chmod(0o600)
    return target


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "raw"])
def test_the_content_is_the_same_whatever_the_format(tmp_path: Path, disk: Path, driver: str) -> None:
    steps: list[float | None] = []
    source = disk if driver == "raw" else in_format(disk, driver)
    image = import_into(tmp_path, source, lambda _step, fraction: steps.append(fraction))
    assert Path(image.path).read_bytes() == disk.read_bytes()
    assert image.allocated < 3 * MIB
    assert max(step or 0 for step in steps) >= 0.8


def test_a_raw_file_that_somebody_writes_is_refused(tmp_path: Path, disk: Path) -> None:
    with disk.open("r+b") as file:
        assert lock_image(file.fileno(), Access.WRITER)
        with pytest.raises(ConflictError):
            import_into(tmp_path, disk)
    assert nothing_left(tmp_path)


def nothing_left(top: Path) -> bool:
    images = top / "s" / "images"
    return not [*images.glob("*.raw"), *images.glob("names/*"), *images.glob("work/*")]


def test_a_backing_file_is_never_read(tmp_path: Path, disk: Path) -> None:
    source = tmp_path / "sly.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/shadow", "-u", source, "4M"],
        check=True,
    )
    with pytest.raises(SpecError, match="backing file"):
        import_into(tmp_path, source)
    flat = tmp_path / "sly.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", flat, "4M"], check=True
    )
    with pytest.raises(SpecError, match="only describes a disk"):
        import_into(tmp_path, flat)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("driver", ["qcow2", "vmdk", "vdi", "vhdx", "vpc"])
def test_a_damaged_image_is_refused_or_copied_and_leaves_nothing_half_made(
    tmp_path: Path, disk: Path, driver: str
) -> None:
    whole = in_format(disk, driver).read_bytes()
    chance = random.Random(driver)
    for number in range(4):
        damaged = bytearray(whole[: chance.randrange(len(whole)) if number % 2 else len(whole)])
        for _ in range(chance.randrange(1, 40)):
            damaged[chance.randrange(min(len(damaged), 2**18))] = chance.randrange(256)
        source, top = tmp_path / "damaged", tmp_path / str(number)
        source.write_bytes(damaged)
        try:
            import_into(top, source)
        except NagayaError as error:
            assert error.code in ("spec", "resource")
            assert nothing_left(top)


def test_a_taken_name_and_a_cancelled_import_leave_what_there_was(tmp_path: Path, disk: Path) -> None:
    source = in_format(disk, "qcow2")

    async def cut_short() -> None:
        paths = Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c")
        begun = asyncio.Event()
        made = import_image(
            ImageStore(paths),
            QemuImg(tool_uid(paths)),
            "disk",
            source,
            None,
            work=work,
            progress=lambda *_: begun.set(),
        )
        task = asyncio.create_task(made)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cut_short())
    assert nothing_left(tmp_path)
    import_into(tmp_path, source)
    with pytest.raises(ConflictError, match="'disk' exists"):
        import_into(tmp_path, source)


PROBE = """
import ctypes, os, socket
def attempt(name, what):
    try:
        print(name, what())
    except (OSError, ImportError) as error:
        print(name, "refused:", type(error).__name__)
attempt("uid", os.getuid)
SYSTEM = {"usr", "lib", "lib64", "bin", "sbin", "dev"}
attempt("files", lambda: sorted(set(os.listdir("/")) - SYSTEM))
attempt("dev", lambda: sorted(os.listdir("/dev")))
attempt("etc", lambda: open("/etc/shadow").read())
attempt("read", lambda: len(open(IN, "rb").read()))
attempt("write-in", lambda: open(IN, "ab").write(b"x"))
attempt("write-out", lambda: open(OUT, "ab").write(b"x"))
attempt("make", lambda: open("/new", "wb"))
attempt("socket", lambda: socket.socket(socket.AF_UNIX))
attempt("kill", lambda: os.kill(1, 0))
attempt("chown", lambda: os.chown(OUT, 0, 0))
libc = ctypes.CDLL(None, use_errno=True)
attempt("mount", lambda: libc.mount(b"x", b"/", b"tmpfs", 0, None))
attempt("unshare", lambda: libc.unshare(0x10000000))
attempt("chroot", lambda: libc.chroot(b"/usr"))
"""


@pytest.mark.root
def test_the_jail_shows_the_files_of_the_plan_and_nothing_else(tmp_path: Path) -> None:
    given, made = tmp_path / "in", tmp_path / "out"
    for path in (given, made):
        path.write_bytes(b"12345")
        path.chmod(0o600)
    python = shutil.which("python3", path="/usr/bin") or sys.executable
    program = f"IN, OUT = {str(given)!r}, {str(made)!r}{PROBE}"
    uid = tool_uid(Paths.default())
    plan = Plan((python, "-S", "-E", "-c", program), uid, reads=(str(given),), writes=(str(made),))
    outcome = asyncio.run(confined.run(plan))
    said = dict(line.split(" ", 1) for line in outcome.output.decode().splitlines())
    assert outcome.status == 0, outcome.message.decode()
    assert said["uid"] == str(uid)
    assert said["files"] == str([tmp_path.parts[1]])
    assert said["dev"] == "['null', 'urandom']"
    assert said["read"] == "5"
    assert said["write-out"] == "1"
    for forbidden in ("etc", "write-in", "make", "socket", "kill", "chown"):
        assert said[forbidden].startswith("refused"), f"{forbidden}: {said[forbidden]}"
    for forbidden in ("mount", "unshare", "chroot"):
        assert said[forbidden] == "-1"
    assert given.read_bytes() == b"12345"
    assert made.read_bytes() == b"12345x"


@pytest.mark.root
def test_a_user_without_root_has_a_jail_too(disk: Path) -> None:
    top = make_directory()
    try:
        source = top / "disk.qcow2"
        shutil.copy(in_format(disk, "qcow2"), source)
        for path in (top, source):
            os.chown(path, NOBODY, NOBODY)
        argv = (str(find_tool("qemu-img")), "check", graph([Node(source, "qcow2")]))
        plan = json.dumps(asdict(Plan(argv, uid=0, reads=(str(source),))))
        importlib.import_module("nagaya._core")  # here: it may be out of a stranger's reach
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self is root's
            os._exit(confined.main(plan))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(top)
