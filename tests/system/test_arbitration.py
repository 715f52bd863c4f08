"""Knobs of real machines: set live, they change what guests get, and `why` says who waited for whom."""

from __future__ import annotations

import mmap
import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from nagaya.errors import ResourceError
from nagaya.paths import Paths
from nagaya.sdk import Client, Machine

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]

SIZE = 64 << 20
READERS = 12
READ = f"""
for i in $(seq {READERS}); do
    (while :; do dd if=/dev/vdb of=/dev/null bs=64k count=60 skip=$((i * 60)) iflag=direct; done) &
done
"""
SPIN = "while :; do :; done &"
LOOK = 2.0  # s over which requests are counted
OTHERS, LARGE = 16, 1 << 20  # reads at a time of the host's own programs, bytes of each
LIMIT = 400  # requests a second: far less than guests and hosts do


@pytest.fixture
def pair(client: Client, paths: Paths) -> tuple[Machine, Machine]:
    """Two machines of one tenant whose guests read all the time, each from a raw disk of its own."""
    return readers(client, paths, f"{LIMIT}iops", READ)


def readers(client: Client, paths: Paths, limit: str | None, program: str) -> tuple[Machine, Machine]:
    """Two machines of one tenant that run `program`."""
    client.tenants.set("acme", {"disk.limit": limit})
    machines = []
    for name in ("db", "web"):
        file = paths.state / f"{name}.img"
        file.write_bytes(os.urandom(SIZE))
        disks = [{"image": "busybox"}, {"path": str(file)}]
        spec = {"name": name, "memory": "96MiB", "disks": disks, "tenant": "acme"}
        machines.append(client.machines.create(spec, start=True))
    for machine in machines:
        machine.wait("agent", 60)
        begin(machine, program)
    return machines[0], machines[1]


def begin(machine: Machine, program: str) -> None:
    """Run a program in the guest that does not end."""
    assert machine.exec(["sh", "-c", f"({program}) >/dev/null 2>&1 </dev/null &"]).exit_code == 0


def until_all_wait(client: Client) -> None:
    """Until every machine asks for more than it gets: only then the knobs say who gets what."""
    deadline = time.monotonic() + 60
    while not all(sum(disk.waiting for disk in one.disks) >= READERS // 2 for one in client.usage().machines):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def busy_disk(file: Path) -> Iterator[None]:
    """Other programs of the host want all of the disk: two guests do not keep a quick one busy."""
    done = threading.Event()

    def read() -> None:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, LARGE) as buffer:
                while not done.is_set():
                    for offset in range(0, SIZE, LARGE):
                        os.preadv(fd, [buffer], offset)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(OTHERS) as pool:
        others = [pool.submit(read) for _ in range(OTHERS)]
        try:
            yield
        finally:
            done.set()
    for one in others:
        one.result()


def reads(client: Client) -> dict[str, float]:
    """Reads a second of each machine."""
    before = client.usage()
    time.sleep(LOOK)
    after = client.usage()
    counts = [
        {one.name: sum(disk.reads for disk in one.disks) for one in usage.machines}
        for usage in (before, after)
    ]
    return {name: (counts[1][name] - counts[0][name]) / (after.at - before.at) for name in counts[1]}


def until_shares_are(client: Client, db: float, web: float) -> None:
    """Until the machines' parts are these, within 5%.

    A busy host now and then keeps a guest from asking, and the other rightly gets what it leaves.
    """
    deadline = time.monotonic() + 60
    while True:
        until_all_wait(client)
        found = reads(client)
        assert sum(found.values()) <= LIMIT * 1.05
        part = found["db"] / sum(found.values())
        if part == pytest.approx(db / (db + web), rel=0.05):
            return
        assert time.monotonic() < deadline, found


def test_weights_reservations_and_limits_are_in_effect(client: Client, pair: tuple[Machine, Machine]) -> None:
    db, web = pair
    pids = db.info.pid, web.info.pid
    until_shares_are(client, 1, 1)
    db.set({"disk.weight": 300})
    until_shares_are(client, 3, 1)
    web.set({"disk.reservation": f"{LIMIT // 2}iops"})
    until_shares_are(client, 1, 1)
    db.set({"disk.limit": "50iops"})
    assert reads(client)["db"] <= 50 * 1.05
    with pytest.raises(ResourceError, match="@acme is limited to 400iops"):
        db.set({"disk.limit": None, "disk.reservation": f"{LIMIT // 2 + 1}iops"})
    assert (db.refresh().info.pid, web.refresh().info.pid) == pids
    db.restart().wait("agent", 60)
    assert db.info.spec["disk"]["limit_iops"] == 50
    begin(db, READ)
    assert reads(client)["db"] <= 50 * 1.05


def waits_for(client: Client, one: str, other: str) -> bool:
    """Whether requests of `one` waited of late because `other` was served."""
    return any(row.waiter.startswith(one) and row.whom.startswith(other) for row in client.waits(10))


def test_why_names_the_limit_and_without_it_the_other_machine(
    client: Client, pair: tuple[Machine, Machine]
) -> None:
    db, _ = pair
    deadline = time.monotonic() + 60
    while not (answer := db.why(2)).rows or answer.rows[0].cause != "limit":
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)
    assert answer.objective == "none"
    assert "nagaya set @acme disk.limit=800iops" in [advice.command for advice in answer.advice]
    client.tenants.set("acme", {"disk.limit": None})
    deadline = time.monotonic() + 60
    while not (waits_for(client, "db", "web") and waits_for(client, "web", "db")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert any("because web was served" in line for line in db.why(30).words)
    assert "nagaya_disk_wait_seconds" in client.metrics()


def test_more_than_the_disk_was_seen_to_do_cannot_be_reserved(client: Client, paths: Paths) -> None:
    db, web = readers(client, paths, None, READ.replace("bs=64k count=60", "bs=4k count=960"))
    with busy_disk(paths.state / "db.img"):
        deadline = time.monotonic() + 60
        while not (capacity := max(arbiter.capacity_iops for arbiter in client.usage().arbiters)):
            assert time.monotonic() < deadline, client.usage().arbiters
            time.sleep(0.2)
    part = max(1, capacity // 10)  # what the disk does later may be less
    web.set({"disk.reservation": f"{part}iops"})
    with pytest.raises(ResourceError) as refused:
        db.set({"disk.reservation": f"{100 * part}iops"})
    said = r"@acme reserves (\d+)iops of disk disk-\d+:\d+, (\d+)iops are left: it does (\d+)iops as measured"
    found = re.match(said, refused.value.message)
    assert found is not None, refused.value.message
    assert int(found[1]) == 101 * part > int(found[3]) == int(found[2]) == refused.value.facts["capacity"]
    assert db.refresh().info.spec["disk"]["reservation_iops"] == 0
    spec = {"name": "more", "memory": "64MiB", "disks": db.info.spec["disks"][:1]}
    knobs = {"reservation_iops": 100 * part}
    with pytest.raises(ResourceError, match=rf"{part}iops are promised \(@acme {part}iops\)"):
        client.machines.create({**spec, "disk": knobs}, start=True)


def test_a_limit_of_cpu_holds_at_once(client: Client) -> None:
    spec = {"name": "box", "memory": "64MiB", "disks": [{"image": "busybox"}]}
    box = client.machines.create(spec, start=True).wait("agent", 60)
    begin(box, SPIN)
    box.set({"cpu.limit": 0.2})
    usages = [client.usage()]
    time.sleep(LOOK)
    usages.append(client.usage())
    used = [usage.machines[0].cpu_us for usage in usages]
    assert used[0] is not None
    assert used[1] is not None
    assert 0 < (used[1] - used[0]) / 1e6 / (usages[1].at - usages[0].at) <= 0.25
    assert Path(f"/proc/{box.refresh().info.pid}").exists()
