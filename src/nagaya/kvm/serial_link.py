"""The first serial port's way out of the machine's process: a stream, served by the event loop.

A vCPU's thread puts bytes into a buffer and goes on; the loop sends them, the first at once and what follows
many together, for each send wakes another process. A buffer that is full makes the guest wait, not the
machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable
from threading import Lock

from nagaya.errors import UnavailableError
from nagaya.hw.serial import Serial

BUFFER_BYTES = 4096  # at most PIPE_BUF: a pipe that is writable takes it without waiting
GATHER_S = 0.002  # from one send to the next: what a guest prints meanwhile goes together
_READ_BYTES = 4096
_STDOUT = 1


class SerialLink:
    """Carries bytes between a `Serial`, which is `attach`ed, and a stream. `lock` is the machine's.

    `output` and `room` are for the port to call, with the lock held, from any thread; the rest is for the
    loop's thread, without the lock.
    """

    def __init__(self, path: str, lock: Lock) -> None:
        """Connect to the unix socket at `path`; "" is standard output. Raises `UnavailableError`."""
        self._lock = lock
        self._loop = asyncio.get_running_loop()
        self._stream = _connect(path) if path else None
        self._fd = self._stream.fileno() if self._stream else _STDOUT
        self._writable_now = select.poll()
        self._writable_now.register(self._fd, select.POLLOUT)
        self._port: Serial | None = None
        self._unsent = bytearray()
        self._sending = False  # a flush is on its way
        self._next_send = 0.0  # not before, by the loop's clock
        self._typed = b""  # what the guest has no room for
        self._gone = False

    def attach(self, port: Serial) -> None:
        """Bytes from the stream go to `port` from now on."""
        self._port = port
        self._listen()

    def output(self, content: bytes) -> int:
        """Take what the buffer has room for; says how many bytes."""
        if self._gone:
            return len(content)  # nobody will ever read it
        taken = content[: BUFFER_BYTES - len(self._unsent)]
        self._unsent += taken
        if not self._sending and self._unsent:
            self._sending = True
            self._soon(lambda: self._loop.call_at(self._next_send, self._flush))
        return len(taken)

    def room(self) -> None:
        """The guest has read what there was."""
        self._soon(self._deliver)

    def close(self) -> None:
        """Send what is left, as far as it goes without waiting, and hang up. Idempotent."""
        if self._gone:
            return
        with self._lock, contextlib.suppress(OSError):
            if self._unsent:
                self._write()
        self._hang_up()

    def _soon(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process with it
            self._loop.call_soon_threadsafe(call)

    def _flush(self) -> None:
        if self._gone:
            return
        try:
            self._next_send = self._loop.time() + GATHER_S
            with self._lock:
                self._write()
                waiting = bool(self._unsent)
                self._sending = waiting
                if self._port is not None and len(self._unsent) < BUFFER_BYTES:
                    self._port.transmit()
        except BlockingIOError:
            waiting = True
        except OSError:
            self._hang_up()
            return
        if waiting:
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._flush()

    def _write(self) -> None:
        """One write, of what the stream takes. A pipe that is writable has room for the buffer."""
        if self._stream is None and not self._writable_now.poll(0):
            raise BlockingIOError
        del self._unsent[: os.write(self._fd, self._unsent)]

    def _listen(self) -> None:
        if self._stream is not None and not self._gone:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            self._typed = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._typed = b""
        if not self._typed:
            self._hang_up()
            return
        self._loop.remove_reader(self._fd)
        self._deliver()

    def _deliver(self) -> None:
        """Hand over what was typed; the stream is read again when the guest has it all."""
        if self._port is None or not self._typed:
            return
        with self._lock:
            taken = self._port.receive(self._typed)
        self._typed = self._typed[taken:]
        if not self._typed:
            self._listen()

    def _hang_up(self) -> None:
        """What the guest prints from now on is lost."""
        self._gone = True
        if self._stream is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._stream.close()


def _connect(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(path)
    except OSError as error:
        stream.close()
        raise UnavailableError(
            f"the serial port's socket {path} does not answer: {error.strerror}",
            hint="the plane listens there while it serves the machine's console",
        ) from error
    stream.setblocking(False)
    return stream
