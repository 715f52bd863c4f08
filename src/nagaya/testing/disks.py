"""Disks that the core serves to a raw client, and a device that loses what is written to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from nagaya import _core
from nagaya.closing import Closing
from nagaya.plane import worker

_PATIENCE_S = 60.0


@contextlib.contextmanager
def core() -> Iterator[_core.Plane]:
    """The Rust half of a holder, in this process, with real workers."""
    plane = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
    try:
        yield plane
    finally:
        plane.close()


def serve(
    plane: _core.Plane,
    path: Path,
    layers: Mapping[str, Path],
    *,
    direct: bool = False,
    write_log: Path | None = None,
) -> None:
    """Add the device `disk0` at the socket `path`; `layers` from the top, image by format.

    What it writes is logged in `write_log` (`nagaya.testing.powerloss`).
    """
    config = {
        "driver": "blk",
        "id": "disk0",
        "worker": "disk",
        "direct": direct,
        "write_log": write_log is not None,
        "layers": [{"format": format_} for format_ in layers],
    }
    with contextlib.ExitStack() as stack:
        fds = []
        files = [(image, os.O_RDONLY if index else os.O_RDWR) for index, image in enumerate(layers.values())]
        files += [(write_log, os.O_RDWR)] if write_log is not None else []
        for file, access in files:
            fds.append(os.open(file, access | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        plane.device_add(json.dumps(config), [listener.fileno(), *fds])


def device(plane: _core.Plane) -> dict[str, Any]:
    """What the plane tells of its only device."""
    (found,) = json.loads(plane.query())["devices"]
    return dict(found)


def worker_pid(plane: _core.Plane) -> int:
    """The process of its only worker, once it runs. Raises `TimeoutError`."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        (found,) = json.loads(plane.query())["workers"]
        if found["pid"] is not None:
            return int(found["pid"])
        time.sleep(0.002)
    raise TimeoutError(f"no worker runs after {_PATIENCE_S} s")


class Asker(Closing):
    """A guest that makes one request at a time (`vub ask`)."""

    def __init__(self, vub: Path, path: Path) -> None:
        command: list[str | Path] = [vub, "ask", "--socket", path]
        self._client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def begin(self, request: str) -> Self:
        """Make a request: `read SECTOR LEN`, `write SECTOR LEN BYTE` or `flush`."""
        if self._client.stdin is not None:
            print(request, file=self._client.stdin, flush=True)
        return self

    def answer(self) -> int:
        """Its status, as virtio has it: 0 is good, 1 an I/O error. Raises `ValueError` if it has ended."""
        return int(self._client.stdout.readline() if self._client.stdout is not None else "")

    def ask(self, request: str) -> int:
        """Both."""
        return self.begin(request).answer()

    def close(self) -> None:
        """End it."""
        with self._client:
            self._client.kill()


@contextlib.contextmanager
def forgetful_device(directory: Path, size: int, kept: int) -> Iterator[Path]:
    """A block device of `size` bytes with room for `kept`; the page cache takes all that is written.

    What is too much is lost when the kernel writes it back: real write errors on any host. Root only.
    """
    room = directory / "room"
    room.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kept}", "room", room], check=True)
    try:
        (room / "image").touch()
        os.truncate(room / "image", size)
        made = subprocess.run(
            ["losetup", "--find", "--show", room / "image"], check=True, capture_output=True, text=True
        )
        try:
            yield Path(made.stdout.strip())
        finally:
            subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
    finally:
        subprocess.run(["umount", "--lazy", room], check=True)
