"""A real Linux guest's console and agent, through the plane's worker, holder and hub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nagaya.agent import GuestAgent
from nagaya.kernel import Kernel
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.plane.config import ConsoleDevice, RngDevice
from nagaya.plane.launch import ensure_holder
from nagaya.testing.scratch import make_directory
from nagaya.testing.workers import worker_pids

QEMU_GA = shutil.which("qemu-ga", path="/usr/sbin:/usr/bin")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.uml,
    pytest.mark.skipif(QEMU_GA is None, reason="needs package qemu-guest-agent"),
]

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin PS1='guest# '
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while [ ! -e /dev/hvc0 ] || [ ! -e /dev/vport0p1 ]; do sleep 0.02; done
qemu-ga -m virtio-serial -p /dev/vport0p1 -t /tmp &
exec setsid sh -c 'exec sh -i </dev/hvc0 >/dev/hvc0 2>&1'
"""


@dataclass
class House:
    """A holder with the devices of one machine, and the guest's process."""

    paths: Paths
    console: ConsoleDevice
    guest: subprocess.Popen[bytes]

    @contextlib.asynccontextmanager
    async def plane(self) -> AsyncIterator[PlaneClient]:
        async with await PlaneClient.connect(self.paths.plane_socket) as client:
            yield client

    def agent(self) -> GuestAgent:
        return GuestAgent("m1", self.console.agent_socket)


class Terminal:
    """Somebody at the console."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def type(self, text: str) -> None:
        self._writer.write(text.encode())

    async def read_until(self, text: bytes, seconds: float = 60) -> bytes:
        seen = b""
        try:
            async with asyncio.timeout(seconds):
                while text not in seen:
                    chunk = await self._reader.read(65536)
                    assert chunk, f"the console hung up after {seen[-200:]!r}"
                    seen += chunk
        except TimeoutError:
            pytest.fail(f"no {text!r} in {seconds} s; the end is {seen[-200:]!r}")
        return seen


@contextlib.asynccontextmanager
async def seated(house: House) -> AsyncIterator[Terminal]:
    reader, writer = await asyncio.open_unix_connection(house.console.console_socket, limit=2**24)
    terminal = Terminal(reader, writer)
    terminal.type("\r")
    await terminal.read_until(b"guest# ")
    try:
        yield terminal
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def house(uml_kernel: Kernel) -> Iterator[House]:
    top = make_directory()
    paths = Paths(top / "r", top / "s", top / "c")
    console = ConsoleDevice(
        "m1/console", str(top / "console.sock"), os.getuid(), os.getgid(), str(top / "host.sock"),
        str(top / "agent.sock"), str(top / "log"), 2**20,
    )  # fmt: skip
    rng = RngDevice("m1/rng", str(top / "rng.sock"), os.getuid(), os.getgid())
    holder = asyncio.run(_hold(paths, console, rng))
    command = [str(uml_kernel.path), "mem=192M", f"initrd={_initramfs(top)}", "rdinit=/init", "panic=-1"]
    command += ["con=null", "con0=null,fd:1", f"umid={top.name}", f"uml_dir={top}/"]
    command += [f"virtio_uml.device={console.socket}:3", f"virtio_uml.device={rng.socket}:4"]
    with (top / "kernel.log").open("wb") as log:
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    yield House(paths, console, guest)
    os.killpg(guest.pid, signal.SIGKILL)
    guest.wait()
    os.kill(holder, signal.SIGTERM)
    while Path(f"/proc/{holder}").exists():
        time.sleep(0.01)
    shutil.rmtree(top)


async def _hold(paths: Paths, *devices: ConsoleDevice | RngDevice) -> int:
    pid = await ensure_holder(paths)
    async with await PlaneClient.connect(paths.plane_socket) as client:
        for device in devices:
            await client.device_add(device)
    return pid


def _initramfs(top: Path) -> Path:
    """Busybox, the host's qemu-ga with its libraries, and the script above."""
    root = top / "root"
    for directory in ("bin", "dev", "proc", "sys", "tmp"):
        (root / directory).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    assert QEMU_GA is not None
    shutil.copy(QEMU_GA, root / "bin")
    linked = subprocess.run(["ldd", QEMU_GA], capture_output=True, text=True, check=True).stdout
    for library in {word for word in linked.split() if word.startswith("/")}:
        place = root / library[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = top / "initramfs"
    with archive.open("wb") as output:
        command = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(command, input=names.encode(), stdout=output, cwd=root, check=True)
    return archive


async def _kill_worker(client: PlaneClient) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill((await worker_pids(client))["chars"], signal.SIGKILL)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_typing_reaches_the_guest_and_its_output_comes_back(house: House) -> None:
    async with seated(house) as terminal:
        terminal.type("echo $((6 * 7))-$(uname -s)\r")
        await terminal.read_until(b"\n42-Linux\r\n")


async def test_the_agent_runs_commands(house: House) -> None:
    async with house.agent() as agent:
        await agent.ping(timeout=30)
        result = await agent.exec(["sh", "-c", "cat; uname -s >&2; exit 3"], stdin=b"in")
        assert result == (3, b"in", b"Linux\n", False)
        content = os.urandom(300_000)
        await agent.write_file("/tmp/f", content)
        assert b"".join([chunk async for chunk in agent.read_file("/tmp/f")]) == content


async def test_an_idle_guest_costs_the_plane_nothing(house: House) -> None:
    async with seated(house), house.plane() as client:
        pids = [await client.pid(), *(await worker_pids(client)).values()]
        used = []
        for _ in range(10):  # on a slow host the guest takes a while to come to rest
            before = [_cpu_seconds(pid) for pid in pids]
            await asyncio.sleep(2)
            used.append(max(_cpu_seconds(pid) - start for pid, start in zip(pids, before, strict=True)))
            if used[-1] < 0.1:
                break
        assert used[-1] < 0.1, f"CPU seconds of the holder or a worker in two idle seconds: {used}"


async def test_no_byte_of_output_is_lost_or_repeated_when_workers_die(house: House) -> None:
    async with seated(house) as terminal, house.plane() as client:
        terminal.type("seq 1 1000; echo do''ne\r")
        reading = asyncio.create_task(terminal.read_until(b"done\r\n", 60))
        for _ in range(5):
            await asyncio.sleep(0.03)
            await _kill_worker(client)
        shown = await reading
        expected = b"".join(b"%d\r\n" % number for number in range(1, 1001))
        start = shown.index(b"\n1\r\n") + 1
        assert shown[start : shown.rindex(b"done")] == expected


async def test_no_key_is_lost_or_repeated_when_workers_die(house: House) -> None:
    async with seated(house) as terminal, house.plane() as client:
        terminal.type("stty -echo; echo rea''dy; read line; stty echo; echo got $line-do''ne\r")
        await terminal.read_until(b"ready\r\n")
        typed = ""
        for number in range(8):
            killing = asyncio.create_task(_kill_worker(client))
            for letter in f"word{number}.":
                terminal.type(letter)
                await asyncio.sleep(0.002)
            typed += f"word{number}."
            await killing
            await asyncio.sleep(0.03)
        terminal.type("\r")
        shown = await terminal.read_until(b"-done\r\n")
        answer, end, _prompt = shown[shown.rindex(b"got ") :].partition(b"-done\r\n")
        assert answer + end == b"got %s-done\r\n" % typed.encode()


async def test_commands_through_the_agent_survive_workers_that_die(house: House) -> None:
    async with house.agent() as agent, house.plane() as client:
        for number in range(6):
            running = asyncio.create_task(agent.exec(["sh", "-c", f"sleep 0.1; echo {number}"]))
            await asyncio.sleep(0.02 * number)
            await _kill_worker(client)
            assert (await running).stdout == b"%d\n" % number


async def test_a_guest_that_never_stops_printing_leaves_the_plane_responsive(house: House) -> None:
    async with seated(house) as terminal, house.plane() as client:
        terminal.type("while :; do cat /init; done\r")
        await asyncio.sleep(1)
        times = []
        for _ in range(10):  # one of them meets an idle host
            started = time.monotonic()
            await client.query_consoles()
            times.append(time.monotonic() - started)
        assert min(times) < 0.5
        terminal.type("\x03")
        await terminal.read_until(b"^C")
        terminal.type("echo al''ive\r")
        await terminal.read_until(b"alive")
