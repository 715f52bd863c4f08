"""The core as the holder uses it: a Python process per worker, killed while a raw client works."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nagaya import _core
from nagaya.plane import worker
from nagaya.testing.disks import Asker, device, serve, worker_pid

DISK_BYTES = 16 << 20
# A worker that computes for ever the first time, and is what its arguments say afterwards.
HANGS_ONCE = """
import os, sys
mark, *command = sys.argv[1:]
if not os.path.exists(mark):
    open(mark, "w").close()
    while True:
        pass
os.execv(command[0], command)
"""


def test_requests_survive_their_workers(plane: _core.Plane, directory: Path, vub: Path) -> None:
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, DISK_BYTES)
    path = _serve(plane, directory, {"raw": image})
    tally, kills = _stamp_under_fire(plane, vub, path)
    assert kills >= 10 and tally["writes"] > 0
    counted = json.loads(plane.query())["devices"][0]
    # What was in flight at a kill may be counted twice, never less than once.
    assert counted["writes"] >= tally["writes"] and counted["errors"] == 0
    assert counted["violations"] == {}


@pytest.mark.qemu
def test_an_overlay_stays_sound(plane: _core.Plane, directory: Path, vub: Path) -> None:
    base, top = directory / "base.raw", directory / "top.qcow2"
    base.write_bytes(b"\xb5" * DISK_BYTES)
    _core.qcow2_create(str(top), DISK_BYTES, str(base), "raw")
    path = _serve(plane, directory, {"qcow2": top, "raw": base})
    tally, kills = _stamp_under_fire(plane, vub, path)
    assert kills >= 10 and tally["writes"] > 0
    plane.device_del("disk0")
    check = subprocess.run(["qemu-img", "check", "-f", "qcow2", top], capture_output=True, check=False)
    # 3: leaked clusters, which a killed writer may leave; they cost space, not data.
    assert check.returncode in (0, 3), check.stdout.decode()
    assert set(base.read_bytes()) == {0xB5}


def test_events_tell_of_each_worker(plane: _core.Plane, directory: Path, vub: Path) -> None:
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, DISK_BYTES)
    path = _serve(plane, directory, {"raw": image})
    subprocess.run([vub, "config", "--socket", path], check=True, capture_output=True)
    killed = worker_pid(plane)
    before = _worker(plane)
    os.kill(killed, signal.SIGKILL)
    _until(lambda: _worker(plane)["pid"] not in (killed, None))
    assert _worker(plane)["generation"] == before["generation"] + 1
    names: list[str] = []

    def told() -> bool:
        names.extend(json.loads(event)["event"] for event in plane.take_events())
        return "DEVICE_DISCONNECTED" in names and names.count("WORKER_STARTED") >= 2

    _until(told)  # the thread of a device may be a while behind
    assert names.count("WORKER_EXITED") == 1 and names.count("WORKER_STARTED") == 2
    assert names.index("DEVICE_CONNECTED") < names.index("DEVICE_DISCONNECTED")


def test_a_worker_that_hangs_is_replaced(directory: Path, vub: Path) -> None:
    image = directory / "disk.raw"
    image.touch()
    os.truncate(image, DISK_BYTES)
    mark, program = directory / "mark", directory / "worker.py"
    program.write_text(HANGS_ONCE)
    own = [str(mark), sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)]
    plane = _core.Plane([sys.executable, "-I", "-S", str(program), *own])
    try:
        path = _serve(plane, directory, {"raw": image})  # the second worker opens it
        subprocess.run([vub, "config", "--socket", path], check=True, capture_output=True)
        events = [json.loads(event) for event in plane.take_events()]
        exits = [event["data"] for event in events if event["event"] == "WORKER_EXITED"]
        assert [one["error"] for one in exits] == ["it computes and does not answer"]
        assert not exits[0]["expected"]
    finally:
        plane.close()


@pytest.mark.root
def test_a_worker_that_dies_on_a_full_host_is_replaced_when_there_is_space(
    plane: _core.Plane, directory: Path, vub: Path
) -> None:
    small, path = directory / "small", directory / "disk.sock"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6M", "small", small], check=True)
    try:
        _core.qcow2_create(str(small / "top.qcow2"), 64 << 20, "", "")
        serve(plane, path, {"qcow2": small / "top.qcow2"})
        with Asker(vub, path) as guest:
            # First writes, whose mappings are not in the file yet: the next worker has to bring them there.
            assert {guest.ask(f"write {128 * cluster} 4096 7") for cluster in range(60)} == {0}
            status = os.statvfs(small)
            (small / "filler").write_bytes(bytes(status.f_bavail * status.f_bsize))
            guest.begin(f"write {128 * 70} 4096 7")
            _until(lambda: device(plane)["spaceless"] == 1)
            os.kill(worker_pid(plane), signal.SIGKILL)
            _until(lambda: "cannot be opened again" in str(device(plane)["last_violation"]))
            (small / "filler").unlink()
            assert (guest.answer(), guest.ask("flush"), device(plane)["violations"]) == (0, 0, {})
        names = [json.loads(event)["event"] for event in plane.take_events()]
        assert (names.count("DEVICE_NO_SPACE"), names.count("DEVICE_SPACE")) == (1, 1)
        plane.device_del("disk0")
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen within 60 s"
        time.sleep(0.01)


def _serve(plane: _core.Plane, directory: Path, layers: dict[str, Path]) -> Path:
    """Add the disk; `layers` from the top, path by format."""
    path = directory / "disk.sock"
    fds = [os.open(layer, os.O_RDWR | os.O_CLOEXEC) for layer in layers.values()]
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            config = {
                "driver": "blk", "id": "disk0", "worker": "disk", "queues": 1, "queue_size": 256,
                "read_only": False, "serial": "", "direct": False,
                "layers": [{"format": format_} for format_ in layers],
            }  # fmt: skip
            plane.device_add(json.dumps(config), [listener.fileno(), *fds])
    finally:
        for fd in fds:
            os.close(fd)
    return path


def _stamp_under_fire(plane: _core.Plane, vub: Path, path: Path) -> tuple[dict[str, Any], int]:
    """Let the client work at depth 32 while workers are killed; its tally, and how many were."""
    command = [
        str(vub),
        "stamp",
        "--socket",
        str(path),
        "--depth",
        "32",
        "--seconds",
        "3",
        "--blocks",
        "4096",
    ]
    done = threading.Event()
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    threading.Timer(3, done.set).start()
    chance = random.Random(3)
    kills = 0
    while not done.wait(chance.uniform(0.02, 0.15)):
        if pid := _worker(plane)["pid"]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
    output, errors = client.communicate(timeout=30)
    assert client.returncode == 0, errors.decode()
    tally: dict[str, Any] = json.loads(output)
    print(f"{kills} kills: {tally}")
    return tally, kills


def _worker(plane: _core.Plane) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(plane.query())["workers"][0]
    return found
