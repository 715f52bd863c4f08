"""A serial port, driven by interrupts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nagaya.hw import layout, serial
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

HERE = Path(__file__).parent
pytestmark = pytest.mark.kvm


class SlowHost:
    """The other end of the second port: takes at most `credit` bytes, and has `typed` to send."""

    def __init__(self, board: Bare, typed: bytes) -> None:
        self.lock = board.machine.lock
        self.typed = typed
        self.credit = 1 << 20
        self.output = b""
        line = board.machine.interrupts.line(layout.SERIAL_IRQS[1])
        self.port = serial.Serial(line, self.take, self.room)
        board.machine.ports.attach(layout.SERIAL_PORTS[1], serial.SIZE, self.port)

    def take(self, content: bytes) -> int:
        taken = content[: self.credit]
        self.credit -= len(taken)
        self.output += taken
        return len(taken)

    def room(self) -> None:
        self.typed = self.typed[self.port.receive(self.typed) :]

    def type(self) -> None:
        with self.lock:
            self.room()

    def pay(self, credit: int) -> None:
        with self.lock:
            self.credit += credit
            self.port.transmit()

    def has(self, length: int) -> bool:
        return len(self.output) >= length


def wait_until(true: Callable[[], bool]) -> None:
    """Nobody signals what the guest does to the port, so it is polled."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_sleeping_guest_is_woken_by_each_fifo_of_input() -> None:
    text = b"the quick brown fox " * 50 + b"."
    board = Bare(build(HERE / "serial_echo.c"))
    host = SlowHost(board, text)
    with board:
        board.said("READY")
        host.type()
        output = board.finish()
    assert host.output == text
    wakes = re.search(r"WAKES (\d+)", output)
    assert wakes is not None
    assert int(wakes[1]) < len(text) // 4


def test_a_guest_waits_for_a_host_that_takes_little() -> None:
    text = bytes(range(97, 123)) * 10 + b"."
    board = Bare(build(HERE / "serial_echo.c"))
    host = SlowHost(board, text)
    host.credit = 0
    with board:
        board.said("READY")
        host.type()
        board.said("STOP")
        assert (host.output, host.typed) == (b"", b"")
        while len(host.output) < len(text):
            wanted = min(len(host.output) + 7, len(text))
            host.pay(7)
            wait_until(partial(host.has, wanted))
        board.finish()
    assert host.output == text


def test_a_guest_that_never_stops_printing_waits_and_can_be_stopped() -> None:
    board = Bare(build(HERE / "printer.c"))
    host = SlowHost(board, b"")
    host.credit = 0
    with board:
        board.said("PRINTS")
        for paid in range(1000, 4000, 1000):
            host.pay(1000)
            wait_until(partial(host.has, paid))
            board.machine.pause()
            assert len(host.output) == paid
            board.machine.resume()
    alphabet = bytes(range(ord(" "), ord("~") + 1))
    assert host.output == (alphabet * 32)[:3000]
