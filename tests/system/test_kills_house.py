"""Kill -9 in a whole house: daemon, worker, machine, holder, while a real guest writes and flushes.

The guest says on its console what it has written and flushed. The console's log on the host is the oracle:
what it says is there in the end, read from the overlay by qemu-img. `NAGAYA_KILLS_HOUSE=1000` asks for more.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter

import pytest

from nagaya.errors import NagayaError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient, WorkerStatus
from nagaya.sdk import Client, Machine, ensure_daemon

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images, pytest.mark.qemu]

KILLS = int(os.environ.get("NAGAYA_KILLS_HOUSE", "30"))
SEED = int(os.environ.get("NAGAYA_KILLS_SEED", "1"))
VICTIMS = ("worker",) * 6 + ("daemon",) * 2 + ("machine",) + ("holder",)
BLOCK, SLOTS, BOOT = 4096, 256, 10**6
PATIENCE = 60.0  # s
# A block is its number, again and again; a boot's numbers are above those of the boots before.
WORK = f"""n=$1
while :; do
    n=$((n + 1))
    yes "$(printf %015d $n)" | head -c {BLOCK} > /tmp/block
    dd if=/tmp/block of=/dev/vdb bs={BLOCK} seek=$((n % {SLOTS})) conv=notrunc,fsync 2> /tmp/err \\
        || echo "FAILED $(cat /tmp/err)" > /dev/console
    echo "DONE $n $n;" > /dev/console
done"""


def test_what_a_guest_has_flushed_outlives_every_kill(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    spec = {"name": "box", "memory": "64MiB", "disks": [{"image": "busybox"}, {"size": "16MiB"}]}
    box = client.machines.create(spec)
    boots = 0
    killed: Counter[str] = Counter()
    while killed.total() < KILLS:
        boots = _boot(box, boots)
        victim = ""
        while victim not in ("machine", "holder") and killed.total() < KILLS:
            time.sleep(chance.uniform(0, 0.4))
            victim = chance.choice(VICTIMS)
            _kill(client, box, victim)
            killed[victim] += 1
            if victim == "daemon":
                ensure_daemon(client.paths)
            assert box.refresh().info.restarts == 0
    if box.refresh().state == "running":
        box.kill()
    said = b"".join(path.read_bytes() for path in sorted(client.paths.machine(box.id).state.glob("console*")))
    assert b"FAILED" not in said
    done = _done(said)
    with capsys.disabled():
        print(f"\n{dict(killed)}, {boots} boots, {len(done)} blocks of {max(done.values()) % BOOT} writes")
    for disk in (0, 1):
        overlay = client.paths.machine(box.id).disk(disk)
        checked = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", overlay], check=False)
        assert checked.returncode in (0, 3), "3: leaked clusters, which cost space and no data"
    flat = client.paths.state / "flat"
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, flat], check=True)
    content = flat.read_bytes()
    for slot, number in done.items():
        lines = set(content[slot * BLOCK : (slot + 1) * BLOCK].split(b"\n")) - {b""}
        assert len(lines) == 1, f"block {slot} is torn: {lines}"
        found = int(lines.pop())
        assert found >= number and found % SLOTS == slot, f"block {slot}: {found}, not {number}"


def _boot(box: Machine, boots: int) -> int:
    """Start it, from whatever state, and have it work; returns how often it was."""
    if box.refresh().state not in ("stopped", "failed"):
        box.wait("stopped", PATIENCE)
    box.start().wait("agent", PATIENCE)
    box.exec(["sh", "-c", f"({WORK}) > /dev/null 2>&1 &", "work", str(boots * BOOT)])
    return boots + 1


def _kill(client: Client, box: Machine, victim: str) -> None:
    host = client.host()
    pid = {"daemon": host.daemon_pid, "holder": host.plane_pid, "machine": box.refresh().info.pid}.get(victim)
    if victim == "worker":
        disks = [one.pid for one in asyncio.run(_workers(client.paths)) if one.name.startswith("disk")]
        pid = disks[0] if disks and disks[0] else None
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    if victim in ("machine", "holder"):
        box.wait("stopped", PATIENCE)
    if victim == "daemon":
        _until_gone(client)


async def _workers(paths: Paths) -> list[WorkerStatus]:
    async with await PlaneClient.connect(paths.plane_socket) as plane:
        return await plane.query_workers()


def _until_gone(client: Client) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            client.host()
        except NagayaError:
            return
    pytest.fail("a killed daemon answers")


def _done(said: bytes) -> dict[int, int]:
    """The last number of each block that the guest was told is durable. A worker that dies may cut a line."""
    done: dict[int, int] = {}
    for first, second in re.findall(rb"DONE (\d+) (\d+);", said):
        if first == second:
            slot = int(first) % SLOTS
            done[slot] = max(done.get(slot, 0), int(first))
    return done
