"""Fixtures of the guest tests: a plane of their own, and disks on it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from nagaya import _core
from nagaya.kvm.config import DeviceConfig
from nagaya.plane import worker

DISK_BYTES = 4 << 20

MakeDisk = Callable[..., DeviceConfig]


@pytest.fixture
def make_plane() -> Iterator[Callable[[], _core.Plane]]:
    """Makes the holder's Rust half in this process; its workers are processes."""
    with contextlib.ExitStack() as stack:

        def make() -> _core.Plane:
            core = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
            stack.callback(core.close)
            return core

        yield make


@pytest.fixture
def plane(make_plane: Callable[[], _core.Plane]) -> _core.Plane:
    """One of them."""
    return make_plane()


@pytest.fixture
def make_disk(directory: Path) -> MakeDisk:
    """Makes an empty raw disk, or serves the one that is there, by a plane."""

    def make(
        plane: _core.Plane, device_id: str = "disk0", *, queues: int = 1, size: int = DISK_BYTES
    ) -> DeviceConfig:
        image = directory / f"{device_id}.raw"
        image.touch()
        os.truncate(image, size)
        config = {
            "driver": "blk",
            "id": device_id,
            "worker": "disk",
            "queues": queues,
            "queue_size": 256,
            "read_only": False,
            "serial": device_id,
            "direct": False,
            "layers": [{"format": "raw"}],
        }
        path = directory / f"{device_id}.sock"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener, image.open("r+b") as file:
            listener.bind(str(path))
            listener.listen()
            plane.device_add(json.dumps(config), [listener.fileno(), file.fileno()])
        return DeviceConfig(device_id, "blk", str(path), queues)

    return make


@pytest.fixture
def disk(plane: _core.Plane, make_disk: MakeDisk) -> MakeDisk:
    """Makes an empty raw disk on `plane`."""
    return partial(make_disk, plane)
