"""Memory that moves by virtio-mem: 256 MiB to a guest that touches each page, and back to the host."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benches._table import Row, report
from nagaya import _core
from nagaya.hw import layout
from nagaya.kvm.config import DeviceConfig
from nagaya.plane import worker
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build
from nagaya.testing.scratch import make_directory

MIB = layout.MIB
RAM, MOVED = 16 * MIB, 256 * MIB
ROUNDS = 5
BOUND_MS = 1000.0


def main(argv: Sequence[str] = ()) -> list[Row]:
    """Print the table and return its rows."""
    top = make_directory()
    core = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])
    try:
        touched = _measure(core, top, "stay=1")
        plugged = _measure(core, top, "stay=1 fill=0")
    finally:
        core.close()
        shutil.rmtree(top)
    bound = {"the bound": [BOUND_MS] * ROUNDS}
    there, back = ([one[column] for one in touched] for column in (0, 1))
    rows = [
        Row("plugged", [one[0] for one in plugged], bound, "ms", "lower", {"the bound": 1.0}),
        Row("plugged, and each page touched", there, {}, "ms", "lower"),
        Row("read, unplugged, and the host's again", back, bound, "ms", "lower", {"the bound": 1.0}),
    ]
    return report("256 MiB of memory of a kvm machine", rows)


def _measure(core: _core.Plane, directory: Path, words: str) -> list[tuple[float, float]]:
    path = directory / "mem0.sock"
    path.unlink(missing_ok=True)
    config = {"driver": "mem", "id": "mem0", "worker": "balloons", "start": layout.hot_start(RAM)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        core.device_add(json.dumps(config | {"size": MOVED}), [listener.fileno()])
    devices = [DeviceConfig("mem0", "mem", str(path))]
    with Bare(build("mem"), words, devices=devices, memory=RAM, hot_memory=MOVED) as guest:
        guest.said("PLUGGED 0\n")
        found = [(_move(core, guest, MOVED), _move(core, guest, 0)) for _ in range(ROUNDS)]
    core.device_del("mem0")
    return found


def _move(core: _core.Plane, guest: Bare, size: int) -> float:
    """Milliseconds until the guest has it, or the host."""
    guest.output = ""
    before = time.monotonic()
    core.set_memory("mem0", size)
    device = guest.machine.devices["mem0"]
    select.select([device.backend.fd], [], [])
    guest.machine.attend(device)
    guest.said(f"PLUGGED {size // MIB}\n")
    past = (time.monotonic() - before) * 1000
    held = os.fstat(guest.machine.memory.fd).st_blocks * 512
    if held > RAM + size:
        raise RuntimeError(f"the host has given {held} bytes, the guest has {size} plugged")
    return past


if __name__ == "__main__":
    main()
