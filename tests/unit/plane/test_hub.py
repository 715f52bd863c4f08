"""The console's many clients and the agent's one, with a socket in the guest's place."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import stat
import statistics
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nagaya.errors import ConflictError
from nagaya.plane.config import ConsoleDevice
from nagaya.plane.hub import SCROLLBACK_BYTES, ConsoleHub

pytestmark = pytest.mark.anyio

RATE = 16 * 2**20


class Port:
    """The guest's end of a port, as a worker has it: packets with the position of their first byte."""

    def __init__(self, stream: socket.socket) -> None:
        self.socket = stream
        self.socket.setblocking(False)
        self.sent = 0  # a worker that follows a killed one begins earlier
        self._had = 0
        self._rest = b""

    def say(self, text: bytes) -> None:
        """One packet."""
        self.socket.send(self.sent.to_bytes(8, "little") + text)
        self.sent += len(text)

    async def say_all(self, text: bytes) -> None:
        for at in range(0, len(text), 32768):
            piece = text[at : at + 32768]
            await asyncio.get_running_loop().sock_sendall(
                self.socket, self.sent.to_bytes(8, "little") + piece
            )
            self.sent += len(piece)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(60):
            while len(self._rest) < size:
                packet = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
                assert int.from_bytes(packet[:8], "little") == self._had
                self._had += len(packet) - 8
                self._rest += packet[8:]
        got, self._rest = self._rest[:size], self._rest[size:]
        return got


class Guest:
    """The guest's ends of the two ports, as the Rust half has them."""

    def __init__(self, hub: ConsoleHub) -> None:
        self.console, self.agent = (Port(end.dup()) for end in hub.guest_ends)
        hub.release_guest_ends()

    async def print(self, text: bytes) -> None:
        await self.console.say_all(text)
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def plugged(device: ConsoleDevice) -> AsyncIterator[tuple[ConsoleHub, Guest]]:
    with ThreadPoolExecutor(1) as pool:
        hub = ConsoleHub(device, pool)
        await hub.open()
        guest = Guest(hub)
        try:
            yield hub, guest
        finally:
            await hub.close()
            guest.console.socket.close()
            guest.agent.socket.close()


@contextlib.asynccontextmanager
async def attached(path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(path)
    await asyncio.sleep(0.01)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def mode(path: str) -> int:
    """Permission bits, 0 if there is no such file."""
    return stat.S_IMODE(Path(path).stat().st_mode) if Path(path).exists() else 0


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def exactly(reader: asyncio.StreamReader, expected: bytes) -> None:
    assert await asyncio.wait_for(reader.readexactly(len(expected)), 60) == expected


async def test_what_a_killed_worker_had_said_already_is_said_once(console: ConsoleDevice) -> None:
    async with plugged(console) as (_, guest), attached(console.console_socket) as (reader, _):
        await guest.print(b"one two")
        guest.console.sent = 4
        await guest.print(b"two three")
        guest.console.sent = 0
        await guest.print(b"one")
        guest.console.sent = 2**32
        await guest.print(b"!")
        await exactly(reader, b"one two three!")
        assert reader.at_eof() is False
    assert contents(console.log) == b"one two three!"


async def test_everybody_sees_the_output_and_everybody_types(console: ConsoleDevice) -> None:
    async with (
        plugged(console) as (hub, guest),
        attached(console.console_socket) as (first, first_keys),
        attached(console.console_socket) as (second, second_keys),
    ):
        await guest.print(b"login: ")
        await exactly(first, b"login: ")
        await exactly(second, b"login: ")
        first_keys.write(b"ro")
        assert await guest.console.read(2) == b"ro"
        second_keys.write(b"ot\r")
        assert await guest.console.read(3) == b"ot\r"
        assert hub.describe() == {
            "id": "m1/console",
            "pty": hub.console.terminal and hub.console.terminal.path,
            "clients": 2,
            "agent_busy": False,
            "output_bytes": 7,
            "input_bytes": 5,
            "skipped_bytes": 0,
            "log_dropped_bytes": 0,
        }


async def test_a_newcomer_gets_the_end_from_the_start_of_a_line(console: ConsoleDevice) -> None:
    async with plugged(console) as (_, guest):
        lines = b"".join(b"line %d\n" % number for number in range(5000))
        await guest.print(lines)
        async with attached(console.console_socket) as (reader, _):
            got = await asyncio.wait_for(reader.read(2 * SCROLLBACK_BYTES), 60)
        assert lines.endswith(got)
        assert got.startswith(b"line ")
        assert SCROLLBACK_BYTES - 10 < len(got) <= SCROLLBACK_BYTES


async def test_a_newcomer_gets_all_of_a_short_output(console: ConsoleDevice) -> None:
    async with plugged(console) as (_, guest):
        await guest.print(b"no newline yet")
        async with attached(console.console_socket) as (reader, _):
            await exactly(reader, b"no newline yet")


async def test_output_is_logged_without_anybody_attached(console: ConsoleDevice) -> None:
    async with plugged(console) as (_, guest):
        await guest.print(b"hello\n")
    assert contents(console.log) == b"hello\n"
    assert mode(console.log) == 0o600


async def test_a_guests_last_words_are_logged(console: ConsoleDevice) -> None:
    async with plugged(console) as (hub, guest):
        guest.console.say(b"Kernel panic\n")
        await hub.close()  # before the event loop has looked at the stream
    assert contents(console.log) == b"Kernel panic\n"


async def test_the_sockets_are_the_owners_and_go_with_the_hub(console: ConsoleDevice) -> None:
    async with plugged(console):
        for path in (console.console_socket, console.agent_socket):
            assert mode(path) == 0o600
    assert mode(console.console_socket) == mode(console.agent_socket) == 0


async def test_a_slow_client_misses_output_and_is_told_while_the_others_see_all(
    console: ConsoleDevice,
) -> None:
    async with (
        plugged(console) as (hub, guest),
        attached(console.console_socket) as (slow, _),
        attached(console.console_socket) as (quick, _),
    ):
        block = b"x" * 65535 + b"\n"
        for _ in range(32):
            await asyncio.gather(guest.print(block), exactly(quick, block))
        assert 0 < hub.console.skipped_bytes < 32 * len(block)
        seen = b""
        while b"too slow]\r\n" not in seen:
            seen += await asyncio.wait_for(slow.read(65536), 60)
        assert b"[nagaya: %d bytes of output skipped" % hub.console.skipped_bytes in seen
        await guest.print(b"still here\n")
        await exactly(quick, b"still here\n")
        await exactly(slow, b"still here\n")


async def test_a_guest_that_never_stops_is_slowed_and_the_log_stays_capped(console: ConsoleDevice) -> None:
    async with plugged(console) as (hub, guest):
        started = time.monotonic()
        turns = []
        block = b"y" * 65536
        while time.monotonic() < started + 1:
            await guest.console.say_all(block)
            before = time.monotonic()
            await asyncio.sleep(0)
            turns.append(time.monotonic() - before)
        assert hub.console.output_bytes <= 1.3 * RATE
        assert statistics.median(turns) < 0.2
    assert len(contents(console.log)) + len(contents(console.log + ".1")) <= console.log_limit


async def test_typing_to_a_guest_that_does_not_read_waits_with_the_typist(console: ConsoleDevice) -> None:
    async with (
        plugged(console) as (hub, guest),
        attached(console.console_socket) as (_, keys),
        attached(console.console_socket) as (_, more_keys),
    ):
        for writer in (keys, more_keys):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    while True:
                        writer.write(b"k" * 16384)
                        await writer.drain()
        accepted = hub.console.input_bytes
        assert accepted < 2**20
        assert await guest.console.read(accepted) == b"k" * accepted
        await guest.console.read(16384)  # and it flows again


async def test_the_pty_is_one_more_client(console: ConsoleDevice) -> None:
    async with plugged(console) as (hub, guest):
        assert hub.console.terminal is not None
        user = os.open(hub.console.terminal.path, os.O_RDWR | os.O_NOCTTY)
        await guest.print(b"# ")
        assert os.read(user, 10) == b"# "
        os.write(user, b"ls\r")
        assert await guest.console.read(3) == b"ls\r"
        os.close(user)


async def test_the_console_has_at_most_32_clients(console: ConsoleDevice) -> None:
    async with plugged(console) as (hub, _), contextlib.AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(attached(console.console_socket))
        reader, _ = await stack.enter_async_context(attached(console.console_socket))
        assert await asyncio.wait_for(reader.read(), 60) == b""
        assert hub.describe()["clients"] == 32


async def test_the_agent_has_one_client_at_a_time(console: ConsoleDevice) -> None:
    async with plugged(console) as (hub, guest):
        async with attached(console.agent_socket) as (reader, writer):
            writer.write(b"ping")
            assert await guest.agent.read(4) == b"ping"
            async with attached(console.agent_socket) as (busy, _):
                assert await asyncio.wait_for(busy.read(), 60) == b""
            await guest.agent.say_all(b"pong")
            await exactly(reader, b"pong")
            assert hub.describe()["agent_busy"]
        await asyncio.sleep(0.01)
        await guest.agent.say_all(b"too late")
        await asyncio.sleep(0.01)
        async with attached(console.agent_socket) as (reader, _):
            await guest.agent.say_all(b"fresh")
            await exactly(reader, b"fresh")


async def test_a_failed_opening_leaves_nothing(console: ConsoleDevice) -> None:
    os.mknod(console.agent_socket)  # in the way
    before = open_files()
    with ThreadPoolExecutor(1) as pool:
        hub = ConsoleHub(console, pool)
        with pytest.raises(ConflictError):
            await hub.open()
        missing = dataclasses.replace(
            console, agent_socket=console.agent_socket + "2", log="/nonexistent/log"
        )
        with pytest.raises(FileNotFoundError):
            await ConsoleHub(missing, pool).open()
    assert mode(console.console_socket) == 0
    assert open_files() == before


@contextlib.asynccontextmanager
async def serial_machine(device: ConsoleDevice) -> AsyncIterator[ConsoleHub]:
    """The hub of a machine whose console is its serial port; the machine has connected."""
    with ThreadPoolExecutor(1) as pool:
        hub = ConsoleHub(device, pool)
        await hub.open()
        try:
            assert len(hub.guest_ends) == 1, "the agent's port is the only one"
            yield hub
        finally:
            await hub.close()


async def test_a_serial_port_is_the_console(console: ConsoleDevice, directory: Path) -> None:
    serial = str(directory / "serial.sock")
    device = dataclasses.replace(console, serial_socket=serial, uid=os.geteuid(), gid=os.getegid())
    async with serial_machine(device), attached(serial) as (keys, screen):
        assert mode(serial) == 0o600
        async with attached(device.console_socket) as (reader, writer):
            screen.write(b"login: ")
            assert await asyncio.wait_for(reader.readexactly(7), 60) == b"login: "
            writer.write(b"root\n")
            assert await asyncio.wait_for(keys.readexactly(5), 60) == b"root\n"
    assert contents(device.log) == b"login: "
    assert mode(serial) == 0, "the socket goes with the hub"


async def test_a_machine_that_connects_again_has_the_console(console: ConsoleDevice, directory: Path) -> None:
    serial = str(directory / "serial.sock")
    device = dataclasses.replace(console, serial_socket=serial, uid=os.geteuid(), gid=os.getegid())
    async with serial_machine(device), attached(device.console_socket) as (reader, writer):
        async with attached(serial) as (old_keys, _), attached(serial) as (keys, screen):
            assert await asyncio.wait_for(old_keys.read(), 60) == b"", "the old connection is closed"
            screen.write(b"again")
            assert await asyncio.wait_for(reader.readexactly(5), 60) == b"again"
            writer.write(b"yes")
            assert await asyncio.wait_for(keys.readexactly(3), 60) == b"yes"
        writer.write(b"nobody is there")
        await asyncio.sleep(0.01)
        async with attached(serial) as (_, screen):
            screen.write(b"third")
            assert await asyncio.wait_for(reader.readexactly(5), 60) == b"third"
