"""The vhost-user frontend against backends that behave, refuse, are mute, or talk nonsense."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nagaya.errors import UnavailableError
from nagaya.hw.virtio import KINDS, Ring, VirtioDevice
from nagaya.kvm import frontend
from nagaya.kvm.frontend import VhostUserBackend
from nagaya.kvm.memory import GuestMemory

# Requests, protocol features and header flags (QEMU docs/interop/vhost-user.rst)
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 21, 24, 25
CONFIG_CHANGE = 2
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
MQ, REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 0, 1 << 3, 1 << 5, 1 << 9
VERSION, REPLY, NEED_REPLY = 1, 4, 8
HEADER = struct.Struct("=III")


class Backend:
    """Serves one connection. `mute`, `refuse` and `nonsense` are requests that it treats so."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.mute = self.refuse = self.nonsense = 0
        self.seen: list[tuple[int, bytes]] = []
        self.fds: dict[int, list[int]] = {}
        self.config = bytearray(range(60))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join()
        self._listener.close()
        for fds in self.fds.values():
            for fd in fds:
                os.close(fd)

    def hang_up(self) -> None:
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)

    def request(self, content: bytes) -> None:
        """Send on the channel for the backend's requests."""
        os.write(self.fds[SET_BACKEND_REQ_FD][0], content)

    def payload(self, request: int) -> bytes:
        return next(body for number, body in self.seen if number == request)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._peer, _ = self._listener.accept()
                with self._peer, contextlib.suppress(OSError):
                    while self._answer(self._peer):
                        pass

    def _answer(self, peer: socket.socket) -> bool:
        content, fds, _, _ = socket.recv_fds(peer, HEADER.size, 8)
        if len(content) < HEADER.size:
            return False
        number, flags, size = HEADER.unpack(content)
        body = b""
        while len(body) < size:
            body += peer.recv(size - len(body))
        self.seen.append((number, body))
        self.fds.setdefault(number, []).extend(fds)
        if number == self.mute:
            return True
        if number == self.nonsense:
            peer.sendall(b"\xff" * 64)
            return True
        reply = self._reply(number, body)
        if reply is None and flags & NEED_REPLY:
            reply = struct.pack("=Q", number == self.refuse)
        if reply is not None:
            peer.sendall(HEADER.pack(number, VERSION | REPLY, len(reply)) + reply)
        return True

    def _reply(self, number: int, body: bytes) -> bytes | None:
        match number:
            case 1:
                return struct.pack("=Q", VERSION_1 | PROTOCOL_FEATURES | 1 << 9)
            case 15:
                return struct.pack("=Q", MQ | REPLY_ACK | BACKEND_REQ | CONFIG)
            case 17:
                return struct.pack("=Q", 2)
            case 11:
                return body[:4] + struct.pack("=I", 41)
            case 24:
                offset, size, _ = struct.unpack_from("=III", body)
                return body[:12] + bytes(self.config[offset : offset + size])
        return None


@pytest.fixture
def backend(directory: Path) -> Iterator[Backend]:
    one = Backend(directory / "s")
    yield one
    one.close()


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(1 << 20) as one:
        yield one


@pytest.fixture
def connect(
    backend: Backend, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], VhostUserBackend]]:
    """Connects; a step may take 0.3 s."""
    monkeypatch.setattr(frontend, "TIMEOUT_S", 0.3)
    with contextlib.ExitStack() as stack:

        def make() -> VhostUserBackend:
            one = VhostUserBackend("disk0", backend.path, memory)
            stack.callback(one.close)
            return one

        yield make


@pytest.fixture
def ring() -> Iterator[Ring]:
    kick, call = os.eventfd(0), os.eventfd(0)
    yield Ring(1, 64, 5, 0x1000, 0x2000, 0x3000, kick, call)
    os.close(kick)
    os.close(call)


def _device(one: VhostUserBackend, memory: GuestMemory) -> VirtioDevice:
    return VirtioDevice(
        KINDS["blk"], one, memory, queue_size=64, call=lambda queue: -1, config_interrupt=lambda: None
    )


def test_what_a_backend_is_told(
    connect: Callable[[], VhostUserBackend], backend: Backend, memory: GuestMemory, ring: Ring
) -> None:
    one = connect()
    assert (one.features, one.queues) == (VERSION_1 | 1 << 9, 2)
    one.start(VERSION_1, [ring])
    host = memory.regions[0].host
    assert struct.unpack("=II", backend.payload(SET_VRING_NUM)) == (1, 64)
    assert struct.unpack("=II", backend.payload(SET_VRING_BASE)) == (1, 5)
    assert struct.unpack("=IIQQQQ", backend.payload(SET_VRING_ADDR)) == (
        *(1, 0, host + 0x1000, host + 0x3000, host + 0x2000),
        0,
    )
    assert struct.unpack("=II4Q", backend.payload(SET_MEM_TABLE)) == (1, 0, 0, 1 << 20, host, 0)
    assert struct.unpack("=Q", backend.payload(SET_FEATURES)) == (VERSION_1 | PROTOCOL_FEATURES,)
    os.eventfd_write(backend.fds[SET_VRING_CALL][0], 3)
    assert os.eventfd_read(ring.call) == 3
    assert os.fstat(backend.fds[SET_MEM_TABLE][0]).st_ino == os.fstat(memory.fd).st_ino
    assert list(one.stop()) == [41]


@pytest.mark.parametrize(
    ("request_number", "name"),
    [
        (GET_FEATURES, "GET_FEATURES"),
        (SET_OWNER, "SET_OWNER"),
        (GET_QUEUE_NUM, "GET_QUEUE_NUM"),
        (SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD"),
        (SET_MEM_TABLE, "SET_MEM_TABLE"),
        (SET_VRING_KICK, "SET_VRING_KICK of queue 1"),
        (SET_VRING_ENABLE, "SET_VRING_ENABLE of queue 1"),
        (GET_VRING_BASE, "GET_VRING_BASE"),
        (GET_CONFIG, "GET_CONFIG"),
    ],
)
@pytest.mark.parametrize("how", ["mute", "nonsense"])
def test_a_backend_that_does_not_answer_fails_the_step_in_time(
    connect: Callable[[], VhostUserBackend],
    backend: Backend,
    ring: Ring,
    request_number: int,
    name: str,
    how: str,
) -> None:
    setattr(backend, how, request_number)
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match=name) as raised:
        one = connect()
        one.start(VERSION_1, [ring])
        one.stop()
        one.read_config(0, 60)
    assert time.monotonic() - begin < 20
    if how == "mute":
        assert "no answer within 300ms" in raised.value.message


def test_a_refusal_is_an_error_with_its_name(
    connect: Callable[[], VhostUserBackend], backend: Backend, ring: Ring
) -> None:
    backend.refuse = SET_VRING_ADDR
    one = connect()
    with pytest.raises(UnavailableError, match="SET_VRING_ADDR of queue 1"):
        one.start(VERSION_1, [ring])
    backend.refuse = 0
    one.start(VERSION_1, [ring])  # it connects again


def test_a_refused_write_to_the_configuration_is_ignored(
    connect: Callable[[], VhostUserBackend], backend: Backend, ring: Ring
) -> None:
    backend.refuse = SET_CONFIG
    one = connect()
    one.write_config(32, b"\1")
    assert backend.payload(SET_CONFIG) == struct.pack("=III", 32, 1, 1) + b"\1"
    assert one.read_config(8, 4) == bytes((8, 9, 10, 11))


def test_a_change_of_the_configuration_is_passed_on(
    connect: Callable[[], VhostUserBackend], backend: Backend, memory: GuestMemory
) -> None:
    one = connect()
    device = _device(one, memory)
    backend.config[8] = 200
    backend.request(HEADER.pack(CONFIG_CHANGE, VERSION, 0))
    one.attend(device)
    assert device.read_config(8, 1) == 200 and device.config_generation == 1
    one.attend(device)
    assert device.config_generation == 1 and device.cause == ""
    device.close()


@pytest.mark.parametrize(
    "content",
    [b"\1\0", HEADER.pack(CONFIG_CHANGE, VERSION, 4000), HEADER.pack(77, VERSION, 0), b"\xff" * 100],
)
def test_nonsense_on_the_request_channel_needs_a_reset(
    connect: Callable[[], VhostUserBackend], backend: Backend, memory: GuestMemory, content: bytes
) -> None:
    one = connect()
    device = _device(one, memory)
    backend.request(content)
    one.attend(device)
    assert device.cause and device.status.NEEDS_RESET
    one.attend(device)
    device.close()


def test_a_backend_that_hangs_up_is_noticed_and_connected_again(
    connect: Callable[[], VhostUserBackend], backend: Backend, memory: GuestMemory, ring: Ring
) -> None:
    one = connect()
    device = _device(one, memory)
    one.start(VERSION_1, [ring])
    backend.hang_up()
    one.attend(device)
    assert device.cause == "disk0: the plane has hung up"
    with pytest.raises(UnavailableError, match="gone"):
        one.stop()
    one.start(VERSION_1, [ring])
    assert list(one.stop()) == [41]
    device.close()


def test_a_queue_that_the_backend_gives_up_needs_a_reset(
    connect: Callable[[], VhostUserBackend], backend: Backend, memory: GuestMemory, ring: Ring
) -> None:
    one = connect()
    device = _device(one, memory)
    one.start(VERSION_1, [ring])
    os.eventfd_write(backend.fds[SET_VRING_ERR][0], 1)
    one.attend(device)
    assert "gave up a queue" in device.cause
    device.close()
