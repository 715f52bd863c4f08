"""Bytes between a serial port and a stream: none lost, none that wait without bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nagaya.errors import UnavailableError
from nagaya.hw.serial import Serial
from nagaya.kvm.serial_link import BUFFER_BYTES, SerialLink
from nagaya.testing.wires import FakeLine

pytestmark = pytest.mark.anyio

DATA, LINE_STATUS = 0, 5
READY, EMPTY = 0x01, 0x20


class Board:
    """A serial port on a link, and the host's end of its stream."""

    def __init__(self, path: str, listener: socket.socket) -> None:
        self.lock = threading.Lock()
        self.link = SerialLink(path, self.lock)
        self.port = Serial(FakeLine(), self.link.output, self.link.room)
        self.link.attach(self.port)
        self.host, _ = listener.accept()
        self.host.setblocking(False)

    def print(self, text: bytes) -> int:
        """What a guest does, from its vCPU's thread: bytes until the port is not empty."""
        sent = 0
        for byte in text:
            with self.lock:
                if not self.port.read(LINE_STATUS, 1) & EMPTY:
                    break
                self.port.write(DATA, 1, byte)
            sent += 1
        return sent

    def read(self) -> bytes:
        """What a guest finds in the port."""
        found = bytearray()
        with self.lock:
            while self.port.read(LINE_STATUS, 1) & READY:
                found.append(self.port.read(DATA, 1))
        return bytes(found)

    async def heard(self, size: int) -> bytes:
        """That many bytes, at the host's end."""
        loop, got = asyncio.get_running_loop(), b""
        async with asyncio.timeout(10):
            while len(got) < size:
                got += await loop.sock_recv(self.host, size - len(got))
        return got


@contextlib.asynccontextmanager
async def board(directory: Path) -> AsyncIterator[Board]:
    path = str(directory / "serial.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        one = Board(path, listener)
    try:
        yield one
    finally:
        one.link.close()
        one.host.close()


async def test_what_a_guest_prints_arrives_in_order(directory: Path) -> None:
    async with board(directory) as one:
        text = bytes(range(256)) * 40
        left = text
        heard = asyncio.create_task(one.heard(len(text)))
        while left:
            left = left[await asyncio.to_thread(one.print, left) :]
            await asyncio.sleep(0.001)
        assert await heard == text


async def test_a_host_that_does_not_read_makes_the_guest_wait(directory: Path) -> None:
    async with board(directory) as one:
        line, sent = b"0123456789abcdef" * 1024, b""
        for _ in range(1000):
            taken = await asyncio.to_thread(one.print, line)
            sent += line[:taken]
            await asyncio.sleep(0.003)
            if taken == 0 and len(sent) > BUFFER_BYTES:  # not just a loop that has not come to its first send
                break
        assert taken == 0, "the port is full"
        assert await one.heard(len(sent)) == sent, "nothing is lost once it is read"
        for _ in range(1000):
            await asyncio.sleep(0.003)
            if await asyncio.to_thread(one.print, b"m"):
                break
        else:
            pytest.fail("the port stays full")


async def test_what_is_typed_waits_for_the_guest(directory: Path) -> None:
    async with board(directory) as one:
        typed = bytes(range(32, 127)) * 20
        await asyncio.get_running_loop().sock_sendall(one.host, typed)
        got = b""
        async with asyncio.timeout(20):
            while len(got) < len(typed):
                got += await asyncio.to_thread(one.read)
                await asyncio.sleep(0.0005)
        assert got == typed


async def test_last_words_are_sent_at_the_end(directory: Path) -> None:
    async with board(directory) as one:
        assert await asyncio.to_thread(one.print, b"panic: ") == 7
        assert await asyncio.to_thread(one.print, b"the end") == 7
        one.link.close()
        one.link.close()
        assert await one.heard(14) == b"panic: the end"


async def test_a_host_that_hangs_up_costs_the_guest_nothing(directory: Path) -> None:
    async with board(directory) as one:
        one.host.close()
        await asyncio.sleep(0.05)
        for _ in range(10):
            assert await asyncio.to_thread(one.print, b"x" * BUFFER_BYTES) == BUFFER_BYTES
            await asyncio.sleep(0.005)


async def test_a_socket_that_nobody_serves_is_named(directory: Path) -> None:
    with pytest.raises(UnavailableError, match=r"nobody\.sock"):
        SerialLink(str(directory / "nobody.sock"), threading.Lock())


async def test_without_a_socket_it_is_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    link = SerialLink("", threading.Lock())
    assert link.output(b"to the log\n") == 11
    link.close()
    assert capfd.readouterr().out == "to the log\n"
