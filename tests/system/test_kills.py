"""Kill -9 of workers, holders and machines at random, with an oracle that none of them holds.

The machine is a raw client that notes in a file when it begins a write and when it is done. The file is
the oracle: whoever is killed, every write that was done is there, whole and in its place; of those that were
under way each block holds one or none. A client fails on a request that completes twice or never. In the end
the image is read without any of our code.

`NAGAYA_KILLS=5000` asks for more kills than the suite has time for, `NAGAYA_KILLS_SEED` for other moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from nagaya import _core
from nagaya.cli.daemon import end
from nagaya.errors import ConflictError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import BlkDevice, Layer
from nagaya.plane.launch import ensure_holder
from nagaya.testing.workers import worker_pids

pytestmark = [pytest.mark.qemu]

KILLS = int(os.environ.get("NAGAYA_KILLS", "150"))
SEED = int(os.environ.get("NAGAYA_KILLS_SEED", "1"))
BLOCK = 4096
BLOCKS = 2048
PATIENCE = 30.0  # s; nothing that is not lost takes so long
VICTIMS = ("worker",) * 16 + ("machine",) * 3 + ("holder",)
NOTE = struct.Struct("<3Q8x")
BEGUN, WRITTEN = 1, 2


@dataclass
class Campaign:
    """A holder, a disk, and a machine that works on it."""

    paths: Paths
    vub: Path
    layers: tuple[Layer, ...]
    direct: bool
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    killed: Counter[str] = field(default_factory=Counter)
    machine: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        return self.paths.state / "oracle"

    @property
    def socket(self) -> Path:
        return self.paths.run / "disk.sock"

    async def run(self, kills: int) -> None:
        """All of it."""
        plane = await self.serve()
        try:
            self.start_machine()
            while self.killed.total() < kills:
                await asyncio.sleep(self.chance.uniform(0, 0.08))
                victim = self.chance.choice(VICTIMS)
                self.killed[victim] += 1
                if victim == "worker":
                    await self.kill_worker(plane)
                    continue
                if victim == "holder":
                    os.kill(await plane.pid(), signal.SIGKILL)
                    await plane.close()
                self.kill_machine(alone=victim == "holder")
                if victim == "holder":
                    plane = await self.serve()
                self.start_machine()
            self.kill_machine()
            self.verify()
            holder = await plane.pid()
            await plane.quit()
            await asyncio.to_thread(end, holder)
        finally:
            await plane.close()
            if self.machine is not None:
                self.machine.kill()
                self.machine.communicate()

    async def serve(self) -> PlaneClient:
        """A holder that serves the disk, as soon as the workers of the one before let go of the image."""
        await ensure_holder(self.paths)
        plane = await PlaneClient.connect(self.paths.plane_socket)
        disk = BlkDevice(
            "m/disk0", str(self.socket), os.getuid(), os.getgid(), self.layers, direct=self.direct
        )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                await plane.device_add(disk)
            except ConflictError:
                assert time.monotonic() < deadline, "a worker without a holder keeps the image"
                await asyncio.sleep(0.01)
            else:
                return plane

    async def kill_worker(self, plane: PlaneClient) -> None:
        """Most of them at work, some while they still take up what the last one left."""
        (pid,) = (await worker_pids(plane)).values()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def start_machine(self) -> None:
        """It reads all that it or those before it wrote, then goes on."""
        command = [*self._stamp("86400"), "--seed", str(self.chance.getrandbits(32))]
        self.machine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.killed.total() % 2 and self.machine.stdout is not None:
            assert self.machine.stdout.readline() == "verified\n", self.machine.communicate()[1]

    def kill_machine(self, *, alone: bool = False) -> None:
        """One that has ended by itself has seen something wrong; or it is `alone`, without its holder."""
        assert self.machine is not None
        self.machine.kill()
        _output, errors = self.machine.communicate()
        lonely = alone and "socket is broken" in errors
        assert lonely or self.machine.returncode == -signal.SIGKILL, errors

    def verify(self) -> None:
        """One last client reads everything."""
        done = subprocess.run(self._stamp("0"), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def _stamp(self, seconds: str) -> list[str]:
        options = {
            "socket": str(self.socket),
            "log": str(self.log),
            "seconds": seconds,
            "blocks": str(BLOCKS),
            "patience": str(int(PATIENCE)),
        }
        return [str(self.vub), "stamp", *(word for name in options for word in (f"--{name}", options[name]))]


@pytest.mark.parametrize("kind", ["raw", "overlay"])
def test_no_write_that_was_done_is_lost(
    paths: Paths, vub: Path, kind: Literal["raw", "overlay"], capsys: pytest.CaptureFixture[str]
) -> None:
    base, top = paths.state / "base.raw", paths.state / "top.qcow2"
    base.touch()
    os.truncate(base, BLOCKS * BLOCK)
    layers: tuple[Layer, ...] = (Layer(str(base), "raw"),)
    if kind == "overlay":
        _core.qcow2_create(str(top), BLOCKS * BLOCK, str(base), "raw")
        layers = (Layer(str(top), "qcow2"), *layers)
    campaign = Campaign(paths, vub, layers, direct=kind == "overlay")
    asyncio.run(campaign.run(KILLS))
    with capsys.disabled():
        print(f"\n{kind}: {dict(campaign.killed)}, {campaign.log.stat().st_size // NOTE.size} notes")
    if kind == "overlay":
        checked = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", top], check=False)
        assert checked.returncode in (0, 3), "3: leaked clusters, which cost space and no data"
        subprocess.run(["qemu-img", "convert", "-O", "raw", top, paths.state / "flat"], check=True)
    content = (paths.state / "flat" if kind == "overlay" else base).read_bytes()
    assert content_as_noted(content, campaign.log.read_bytes()) > 0


def content_as_noted(content: bytes, log: bytes) -> int:
    """Compare every block with the notes; how many were ever written."""
    done = [0] * BLOCKS
    begun: list[set[int]] = [set() for _ in range(BLOCKS)]
    for kind, block, sequence in NOTE.iter_unpack(log[: len(log) // NOTE.size * NOTE.size]):
        if kind == BEGUN:
            begun[block].add(sequence)
        elif kind == WRITTEN:
            done[block] = sequence
            begun[block].clear()
    for block in range(BLOCKS):
        bytes_ = content[block * BLOCK : (block + 1) * BLOCK]
        possible = {done[block], *begun[block]}
        assert bytes_ in {_stamped(block, sequence) for sequence in possible}, f"block {block}"
    return sum(map(bool, done))


def _stamped(block: int, sequence: int) -> bytes:
    return struct.pack("<2Q", block, sequence) * (BLOCK // 16) if sequence else bytes(BLOCK)
