"""The host's end of a console's port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.plane.packets import PACKET, PacketTransport


class Listener(asyncio.Protocol):
    """What a transport tells its protocol."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.paused = False
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.got += data

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield host, guest
    host.close()
    guest.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


CONTENT = bytes(range(256)) * 4


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=40))
def test_whatever_workers_send_again_comes_once(sends: list[tuple[int, int]]) -> None:
    """Each send goes back by some bytes from where the last one ended."""

    async def scene() -> None:
        host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = Listener()
        transport = PacketTransport(host, listener)
        at = furthest = 0
        for back, size in sends:
            at = max(0, at - back)
            guest.send(at.to_bytes(8, "little") + CONTENT[at : at + size])
            at = min(at + size, len(CONTENT))
            furthest = max(furthest, at)
        await turns()
        assert listener.got == CONTENT[:furthest]
        transport.abort()
        await listener.lost.wait()
        guest.close()

    asyncio.run(scene())


def test_what_a_full_socket_does_not_take_waits_and_goes_on_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    host, guest = ends
    guest.setblocking(False)
    text = bytes(range(251)) * 8000

    async def scene() -> None:
        listener = Listener()
        transport = PacketTransport(host, listener)
        transport.set_write_buffer_limits(high=1000)
        transport.write(text)
        paused = [listener.paused]
        got = bytearray()
        async with asyncio.timeout(5):
            while len(got) < len(text):
                packet = await asyncio.get_running_loop().sock_recv(guest, 65536)
                assert int.from_bytes(packet[:8], "little") == len(got)
                assert 0 < len(packet) - 8 <= PACKET
                got += packet[8:]
        await turns()
        assert got == text
        assert [*paused, listener.paused] == [True, False]
        transport.abort()
        await listener.lost.wait()

    asyncio.run(scene())


def test_a_pause_leaves_packets_in_the_socket_and_the_rest_can_be_taken(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    host, guest = ends

    async def scene() -> None:
        listener = Listener()
        transport = PacketTransport(host, listener)
        transport.pause_reading()
        for at, word in ((0, b"one "), (4, b"two "), (8, b"three")):
            guest.send(at.to_bytes(8, "little") + word)
        await turns()
        assert listener.got == b""
        assert transport.read_rest(6) == b"one tw"
        transport.resume_reading()
        await turns()
        assert listener.got == b"three"
        transport.abort()
        await listener.lost.wait()

    asyncio.run(scene())


def test_a_guest_end_that_closes_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    host, guest = ends

    async def scene() -> None:
        listener = Listener()
        transport = PacketTransport(host, listener)
        guest.close()
        async with asyncio.timeout(5):
            await listener.lost.wait()
        assert transport.is_closing()
        transport.write(b"nobody")
        assert host.fileno() == -1

    asyncio.run(scene())
