"""What a device is given in its constructor: the wires that lead out of it. `nagaya.kvm` implements them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Line(Protocol):
    """An interrupt line of the I/O APIC."""

    def set(self, level: bool) -> None:
        """Drive the line high or low."""


class Vector(Protocol):
    """A message-signalled interrupt behind an eventfd (irqfd): who writes the eventfd interrupts the guest.

    It begins masked. While it is masked the eventfd collects signals, and one interrupt follows on unmask.
    """

    fd: int  # eventfd, non-blocking, owned by the vector

    def unmask(self, address: int, payload: int) -> None:
        """Deliver from now on as a write of `payload` (32 bits) to `address` (PCI 3.0, 6.8.2). Repeatable."""

    def mask(self) -> None:
        """Hold signals back."""

    def pending(self) -> bool:
        """Whether a masked vector holds a signal (the MSI-X pending bit)."""

    def close(self) -> None:
        """Give back the eventfd and the interrupt's route."""


class Pulse(Protocol):
    """An edge-triggered line of the I/O APIC behind an eventfd (irqfd): each signal is one interrupt."""

    fd: int  # eventfd, non-blocking, owned by the pulse

    def close(self) -> None:
        """Give back the eventfd."""


class Interrupts(Protocol):
    """Where lines and vectors come from."""

    def line(self, number: int) -> Line:
        """The line `number` of the I/O APIC."""

    def pulse(self, number: int) -> Pulse:
        """The line `number` of the I/O APIC, to be signalled through an eventfd. Nobody else drives it."""

    def vector(self) -> Vector:
        """A new vector. Raises `ResourceError` when the host has no route left."""


class Doorbells(Protocol):
    """Turns guest writes into eventfd signals without leaving the kernel (ioeventfd)."""

    def bind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        """Signal `fd` on writes of `size` bytes (0: any) to memory at `address`, only of `match` if given."""

    def unbind(self, fd: int, address: int, size: int, match: int | None = None) -> None:
        """Undo exactly that `bind`."""


@dataclass(frozen=True, slots=True)
class RamRegion:
    """A part of guest RAM: `size` bytes at guest-physical `address`, from `offset` in the file `fd`."""

    address: int
    size: int
    fd: int
    offset: int
    host: int  # where it is mapped in this process


class Ram(Protocol):
    """Guest memory, as devices that are not backends need it."""

    @property
    def regions(self) -> Sequence[RamRegion]:
        """Its parts, lowest address first."""

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at guest-physical `address`. Raises `UsageError` if they are not all RAM."""

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        """Store `content` at `address`. Raises `UsageError` if it does not all fall into RAM."""


class Request(StrEnum):
    """What a guest asks of its machine through a device."""

    POWEROFF = "poweroff"
    RESET = "reset"
    PANICKED = "panicked"  # pvpanic: the kernel panicked
    CRASH_LOADED = "crash-loaded"  # pvpanic: it panicked and goes on in a crash kernel


class Board(Protocol):
    """The machine, as a device sees it."""

    def request(self, what: Request, cause: str) -> None:
        """Note what the guest asks for; the machine acts after the access. `cause` is for people."""
