"""The terminal, wired to a machine, on a real pseudo-terminal."""

from __future__ import annotations

import os
import pty
import queue
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nagaya.cli import rawterm


class Loop:
    """A stream that answers what it is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self._answers: queue.Queue[bytes | None] = queue.Queue()

    def send(self, message: bytes) -> None:
        self.sent += message
        self._answers.put(b"<" + message + b">")

    def __iter__(self) -> Iterator[bytes]:
        while (answer := self._answers.get()) is not None:
            yield answer

    def close(self) -> None:
        self._answers.put(None)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def _when_raw(terminal: int, act: Callable[[], object]) -> None:
    """Beside the test, as soon as the terminal is raw: what is typed before is thrown away."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while termios.tcgetattr(terminal)[3] & termios.ICANON and time.monotonic() < deadline:
            time.sleep(0.005)
        act()

    threading.Thread(target=wait).start()


def _read(master: int) -> bytes:
    os.set_blocking(master, False)
    time.sleep(0.05)
    return os.read(master, 65536)


def test_keys_go_through_unchanged_until_the_detach_key(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    saved = termios.tcgetattr(slave)
    stream = Loop()
    _when_raw(master, lambda: os.write(master, b"ls\r\x03\x04\x1a\x1dnot this"))
    assert rawterm.attach(stream, slave, slave) is True
    assert stream.sent == b"ls\r\x03\x04\x1a"
    assert termios.tcgetattr(slave) == saved
    assert b"<ls\r\x03\x04\x1a>" in _read(master)


def test_the_end_of_the_stream_ends_the_session(terminal: tuple[int, int]) -> None:
    _master, slave = terminal
    saved = termios.tcgetattr(slave)
    stream = Loop()
    threading.Timer(0.05, stream.close).start()
    assert rawterm.attach(stream, slave, slave) is False
    assert termios.tcgetattr(slave) == saved


def test_another_detach_key_leaves_this_one_to_the_guest(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    stream = Loop()
    _when_raw(master, lambda: os.write(master, b"\x1d\x01"))
    assert rawterm.attach(stream, slave, slave, detach_byte=1) is True
    assert stream.sent == b"\x1d"


def test_sigterm_restores_the_terminal(terminal: tuple[int, int]) -> None:
    _master, slave = terminal
    saved = termios.tcgetattr(slave)
    handler = signal.getsignal(signal.SIGTERM)
    _when_raw(slave, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        rawterm.attach(Loop(), slave, slave)
    assert caught.value.code == 128 + signal.SIGTERM
    assert termios.tcgetattr(slave) == saved
    assert signal.getsignal(signal.SIGTERM) == handler


def test_piped_input_is_sent_and_its_answer_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawterm, "QUIET_S", 0.1)
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    os.write(stdin_write, b"uname\n")
    os.close(stdin_write)
    assert rawterm.attach(Loop(), stdin_read, stdout_write) is True
    assert os.read(stdout_read, 100) == b"<uname\n>"
    for fd in (stdin_read, stdout_read, stdout_write):
        os.close(fd)
