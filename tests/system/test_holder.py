"""The holder as a process, with the real core: it starts once, keeps order and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.errors import ConflictError, UnavailableError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import BlkDevice, ConsoleDevice, Layer, RngDevice
from nagaya.plane.launch import ensure_holder
from nagaya.testing.workers import worker_pids

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running(paths: Paths) -> AsyncIterator[tuple[int, PlaneClient]]:
    pid = await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as client:
        yield pid, client
        with contextlib.suppress(UnavailableError):
            await client.quit()
    await gone(pid)


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


def devices(paths: Paths, machine: str) -> tuple[BlkDevice, ConsoleDevice, RngDevice]:
    """The usual three devices, with an image of 1 MiB, sockets in the run directory."""
    paths.run.mkdir(exist_ok=True)
    image = paths.run / f"{machine}.img"
    image.write_bytes(bytes(2**20))

    def place(name: str) -> str:
        return str(paths.run / f"{machine}-{name}")

    uid, gid = os.getuid(), os.getgid()
    return (
        BlkDevice(f"{machine}/disk0", place("disk0.sock"), uid, gid, (Layer(str(image), "raw"),)),
        ConsoleDevice(
            f"{machine}/console",
            place("console.sock"),
            uid,
            gid,
            place("host-console.sock"),
            place("agent.sock"),
            place("console.log"),
            65536,
        ),
        RngDevice(f"{machine}/rng", place("rng.sock"), uid, gid),
    )


def pss_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))


async def test_it_starts_once_however_many_ask(house: Paths) -> None:
    pids = await asyncio.gather(*(ensure_holder(house) for _ in range(4)))
    assert len(set(pids)) == 1
    async with running(house) as (pid, _):
        assert pid == pids[0]
        assert stat.S_IMODE(house.plane_socket.stat().st_mode) == 0o600
        assert os.getsid(pid) != os.getsid(0)
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")  # noqa: ASYNC240
    assert not house.plane_socket.exists()


async def test_a_second_holder_is_refused_and_told_who_has_the_place(house: Paths) -> None:
    async with running(house) as (pid, _):
        second = subprocess.run(  # noqa: ASYNC221
            [sys.executable, "-m", "nagaya.plane"],
            env=os.environ | house.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert second.returncode == ConflictError.exit_code
        assert second.stderr.startswith(f"another plane holder (pid {pid}) has {house.run}\n")


async def test_after_kill_9_the_next_one_takes_over_the_stale_sockets(house: Paths) -> None:
    pid = await ensure_holder(house)
    disk, console, rng = devices(house, "m1")
    async with await PlaneClient.connect(house.plane_socket) as client:
        for device in (disk, console, rng):
            await client.device_add(device)
        workers = (await worker_pids(client)).values()
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(client.wait_closed(), 60)
    for process in (pid, *workers):
        await gone(process)
    assert house.plane_socket.exists()
    async with running(house) as (next_pid, client):
        assert next_pid != pid
        for device in (disk, console, rng):
            await client.device_add(device)


async def test_it_ends_on_sigterm_and_says_what_that_costs(house: Paths) -> None:
    async with running(house) as (pid, client):
        for device in devices(house, "m1"):
            await client.device_add(device)
        os.kill(pid, signal.SIGTERM)
        await gone(pid)
    log = (house.state / "plane.log").read_text()
    assert '"event": "plane stops; machines lose their devices", "devices": 3, "machines": ["m1"]' in log
    assert sorted(path.name for path in house.run.iterdir()) == ["m1-console.log", "m1.img", "plane.lock"]


async def test_the_service_manager_and_the_terminal(house: Paths) -> None:
    """Ready by sd_notify and by fd; ctrl-C and a closed terminal are not for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(house.run / "notify"))
        notify.settimeout(10)
        ready, ready_write = os.pipe()
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "nagaya.plane", "--ready-fd", str(ready_write)],
            env=os.environ | house.environment() | {"NOTIFY_SOCKET": str(house.run / "notify")},
            pass_fds=[ready_write],
            stderr=subprocess.PIPE,
        )
        os.close(ready_write)
        with process:
            assert os.read(ready, 100) == b"ready\n"
            assert notify.recv(100) == b"READY=1"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGHUP)
            async with await PlaneClient.connect(house.plane_socket) as client:
                assert await client.pid() == process.pid
            process.terminate()
            process.communicate(timeout=10)
        os.close(ready)
    assert process.returncode == 0


async def test_a_holder_that_cannot_start_is_reported_with_its_log(house: Paths) -> None:
    house.plane_socket.write_text("in the way")
    with pytest.raises(UnavailableError, match="did not start") as caught:
        await ensure_holder(house)
    assert f"{house.plane_socket} exists and is not a socket" in caught.value.hint


async def test_a_killed_worker_is_replaced_at_once_and_said(house: Paths) -> None:
    async with running(house) as (_, client):
        for device in devices(house, "m1"):
            await client.device_add(device)
        pid = (await worker_pids(client))["chars"]
        before = {worker.name: worker for worker in await client.query_workers()}
        names = []
        events = client.events()
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        names.append((await asyncio.wait_for(waiting, 60)).name)
        started = await asyncio.wait_for(anext(events), 60)
        names.append(started.name)
        assert names == ["WORKER_EXITED", "WORKER_STARTED"]
        assert started.at - killed < 0.5
        after = {worker.name: worker for worker in await client.query_workers()}
        assert after["chars"].pid != pid
        assert after["chars"].generation == before["chars"].generation + 1
        await events.aclose()


async def test_a_machine_costs_little(house: Paths) -> None:
    async with running(house) as (pid, client):
        for device in devices(house, "m0"):
            await client.device_add(device)
        assert pss_kib(pid) < 32 * 1024
        first = _own_kib(pid)
        for number in range(1, 21):
            for device in devices(house, f"m{number}"):
                await client.device_add(device)
        assert (_own_kib(pid) - first) / 20 < 256


def _own_kib(pid: int) -> int:
    """Memory that is the process's alone: a PSS grows too when others that share its libraries end."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))
