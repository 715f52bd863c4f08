"""A disk gets other files while a guest works: no request is lost, and the old files are written no more."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.testing.disks import Asker, device, serve, worker_pid

MIB = 2**20
SIZE = 16 * MIB


def overlay(path: Path, below: Path, below_format: str, size: int = SIZE) -> Path:
    _core.qcow2_create(str(path), size, str(below), below_format)
    return path


def change(plane: _core.Plane, layers: list[Path]) -> None:
    """Serve the disk from `layers`, the top first and the last one raw."""
    formats = ["qcow2"] * (len(layers) - 1) + ["raw"]
    config = {
        "driver": "blk",
        "id": "disk0",
        "worker": "disk",
        "direct": False,
        "layers": [{"format": one} for one in formats],
    }
    with contextlib.ExitStack() as stack:
        fds = []
        for index, layer in enumerate(layers):
            fds.append(os.open(layer, (os.O_RDONLY if index else os.O_RDWR) | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        plane.set_layers("disk0", json.dumps(config), fds)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stamp(vub: Path, socket: Path, log: Path, seconds: float) -> list[str]:
    return [
        *(str(vub), "stamp", "--socket", str(socket), "--depth", "32", "--seconds", str(seconds)),
        *("--blocks", "3000", "--log", str(log), "--patience", "20"),
    ]


@pytest.mark.qemu
@pytest.mark.parametrize("kill", [False, True], ids=["workers live", "workers die"])
def test_requests_survive_a_change_of_files(
    plane: _core.Plane, directory: Path, vub: Path, kill: bool
) -> None:
    base, socket, log = directory / "base.raw", directory / "d.sock", directory / "log"
    base.write_bytes(bytes(SIZE))
    layers = [overlay(directory / "l0.qcow2", base, "raw"), base]
    serve(plane, socket, {"qcow2": layers[0], "raw": base})
    chance = random.Random(kill)
    client = subprocess.Popen(stamp(vub, socket, log, 3), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    at_rest: dict[Path, str] = {}
    while client.poll() is None and len(layers) < 20:
        time.sleep(chance.uniform(0.02, 0.1))
        if kill:
            os.kill(worker_pid(plane), signal.SIGKILL)
        fresh = overlay(directory / f"l{len(layers)}.qcow2", layers[0], "qcow2")
        change(plane, [fresh, *layers])
        at_rest[layers[0]] = digest(layers[0])
        layers.insert(0, fresh)
    output, errors = client.communicate(timeout=60)
    assert client.returncode == 0, errors.decode()
    assert len(layers) > 8
    assert json.loads(output.splitlines()[-1])["writes"] > 0
    for layer, before in at_rest.items():
        assert digest(layer) == before, f"{layer.name} was written after it came to rest"
    again = subprocess.run(stamp(vub, socket, log, 0.2), capture_output=True, check=False, timeout=60)
    assert again.returncode == 0, again.stderr.decode()
    assert b"verified" in again.stdout
    state = device(plane)
    assert (state["errors"], state["violations"], state["flush_error"]) == (0, {}, 0)
    plane.device_del("disk0")
    for layer in layers[:-1]:
        check = subprocess.run(["qemu-img", "check", "-f", "qcow2", layer], capture_output=True, check=False)
        assert check.returncode in (0, 3), check.stdout.decode()


def test_files_that_cannot_be_served_change_nothing(plane: _core.Plane, directory: Path, vub: Path) -> None:
    base, socket = directory / "base.raw", directory / "d.sock"
    base.write_bytes(bytes(SIZE))
    top = overlay(directory / "top.qcow2", base, "raw")
    serve(plane, socket, {"qcow2": top, "raw": base})
    small = overlay(directory / "small.qcow2", top, "qcow2", SIZE // 2)
    damaged = overlay(directory / "damaged.qcow2", top, "qcow2")
    with damaged.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff" * 8)
    with contextlib.closing(Asker(vub, socket)) as guest:
        assert guest.ask("write 0 4096 7") == 0
        with pytest.raises(ValueError, match="are smaller"):
            change(plane, [small, top, base])
        with pytest.raises(OSError, match="not an overlay of ours"):
            change(plane, [damaged, top, base])
        config = {"driver": "blk", "id": "none", "worker": "w", "layers": [{"format": "raw"}]}
        with base.open("rb") as file, pytest.raises(KeyError):
            plane.set_layers("none", json.dumps(config), [file.fileno()])
        assert (guest.ask("write 8 4096 8"), guest.ask("flush"), guest.ask("read 0 8192")) == (0, 0, 0)
        good = overlay(directory / "good.qcow2", top, "qcow2")
        before = digest(top)
        change(plane, [good, top, base])
        assert (guest.ask("write 16 4096 9"), guest.ask("flush"), guest.ask("read 0 12288")) == (0, 0, 0)
        assert digest(top) == before
