"""Wires without a machine (nagaya.hw.wires). They remember what a device did; the eventfds are real."""

from __future__ import annotations

import os
import select
from dataclasses import dataclass, field

from nagaya.errors import ConflictError, ResourceError
from nagaya.hw.wires import Request


@dataclass(slots=True)
class FakeLine:
    """A line whose level can be asked, and that counts how often it rose."""

    level: bool = False
    edges: int = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


class FakePulse:
    """A line's eventfd, and nothing behind it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FakeVector:
    """A vector with no kernel behind its eventfd: `delivered` has (address, payload) of what came through.

    An irqfd delivers by itself; here `collect` has to be called after somebody wrote the eventfd.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.open: tuple[int, int] | None = None
        self.delivered: list[tuple[int, int]] = []

    def unmask(self, address: int, payload: int) -> None:
        self.collect()
        self.open = address, payload
        self.collect()

    def mask(self) -> None:
        self.collect()
        self.open = None

    def pending(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return self.open is None and bool(poll.poll(0))

    def collect(self) -> None:
        """Deliver what was signalled, if the vector is open."""
        if self.open is None:
            return
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return
        self.delivered.append(self.open)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FakeInterrupts:
    """Gives out lines and vectors, and knows them all. No more than `limit` vectors."""

    def __init__(self, limit: int = 10_000) -> None:
        self.limit = limit
        self.lines: dict[int, FakeLine] = {}
        self.vectors: list[FakeVector] = []

    def line(self, number: int) -> FakeLine:
        return self.lines.setdefault(number, FakeLine())

    def pulse(self, number: int) -> FakePulse:
        return FakePulse()

    def vector(self) -> FakeVector:
        if len(self.vectors) >= self.limit:
            raise ResourceError(f"no more than {self.limit} vectors")
        self.vectors.append(FakeVector())
        return self.vectors[-1]

    def close(self) -> None:
        """Close the eventfds that are still open."""
        for one in self.vectors:
            one.close()


@dataclass(slots=True)
class FakeDoorbells:
    """`bound` has (address, size, match) → fd. A second bind raises, as with KVM."""

    bound: dict[tuple[int, int, int | None], int] = field(default_factory=dict)

    def bind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        key = (address, size, match)
        if key in self.bound:
            raise ConflictError(f"a doorbell at {address:#x} is bound already")
        self.bound[key] = fd

    def unbind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        if self.bound.pop((address, size, match), None) != fd:
            raise ConflictError(f"no doorbell of fd {fd} at {address:#x}")


@dataclass(slots=True)
class FakeBoard:
    """Notes what guests ask for: (request, cause)."""

    requests: list[tuple[Request, str]] = field(default_factory=list)

    def request(self, what: Request, cause: str) -> None:
        self.requests.append((what, cause))
