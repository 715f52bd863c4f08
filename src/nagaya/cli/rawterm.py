"""This terminal, wired to a byte stream of a machine. Whatever happens, the terminal is restored."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Protocol

DETACH_BYTE = 0x1D  # ctrl-], as in telnet
READ_BYTES = 4096
QUIET_S = 1.0  # after the end of piped input, output this long silent is taken for complete

# Attributes off, cursor shown, mouse and bracketed paste off: what a full-screen program leaves behind.
_SANE = b"\x1b[0m\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?2004l"


class Stream(Protocol):
    """Bytes both ways. Iteration ends, or raises `OSError`, when the other side closes."""

    def send(self, message: bytes, /) -> None:
        """Send what was typed."""

    def __iter__(self) -> Iterator[str | bytes]:
        """What the machine prints."""

    def close(self) -> None:
        """Hang up; the iteration in the other thread ends."""


def attach(stream: Stream, stdin: int, stdout: int, detach_byte: int = DETACH_BYTE) -> bool:
    """Copy both ways until the user detaches (True) or the stream ends (False)."""
    wake_read, wake_write = os.pipe()
    activity = threading.Event()

    def receive() -> None:
        try:
            for message in stream:
                activity.set()
                write_all(stdout, message.encode() if isinstance(message, str) else message)
        except OSError:
            pass  # the stream or the terminal is gone: both mean the end
        finally:
            os.write(wake_write, b"x")

    receiver = threading.Thread(target=receive, name="console output", daemon=True)
    receiver.start()  # first: a SIGTERM in raw mode must find a thread that can be joined
    try:
        with raw_mode(stdin, stdout):
            return _send_typed(stream, stdin, wake_read, detach_byte, activity)
    finally:
        stream.close()
        receiver.join(timeout=5)
        if not receiver.is_alive():
            os.close(wake_write)
            os.close(wake_read)


def _send_typed(stream: Stream, stdin: int, wake: int, detach_byte: int, activity: threading.Event) -> bool:
    sources = [stdin, wake]
    while True:
        timeout = None if stdin in sources else QUIET_S
        ready, _, _ = select.select(sources, [], [], timeout)
        if wake in ready:
            return False
        if not ready:
            if not activity.is_set():
                return True
            activity.clear()
            continue
        typed = os.read(stdin, READ_BYTES)
        if not typed:  # piped input has ended: stay until its answer has, too
            sources.remove(stdin)
            activity.clear()
            continue
        before, detach, _rest = typed.partition(bytes([detach_byte]))
        if before:
            try:
                stream.send(before)
            except OSError:
                return False
        if detach:
            return True


@contextlib.contextmanager
def raw_mode(stdin: int, stdout: int) -> Iterator[None]:
    """Every key goes through unchanged; restored at the end, also by SIGTERM and SIGHUP."""
    if not os.isatty(stdin):
        yield
        return
    saved = termios.tcgetattr(stdin)

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    def again(_number: int, _frame: object) -> None:
        tty.setraw(stdin)

    handlers = {signal.SIGTERM: leave, signal.SIGHUP: leave, signal.SIGCONT: again}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        tty.setraw(stdin)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(termios.error):  # a terminal that hung up needs no restoring
            termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
        if os.isatty(stdout):
            with contextlib.suppress(OSError):
                write_all(stdout, _SANE + b"\r\n")


def write_all(fd: int, output: bytes) -> None:
    """Write all of `output`, however small the steps that a terminal takes."""
    view = memoryview(output)
    while view:
        view = view[os.write(fd, view) :]
