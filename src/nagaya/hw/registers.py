"""Registers at fixed offsets, declared once: width, reset value, and which bits a guest may change.

COMMAND = RegisterAt("command", 0x04, 2, Command, writable=Command.of(MEMORY=1, BUS_MASTER=1))
HEADER = RegisterMap(64, (VENDOR, COMMAND, ...))     # once, at import
header = RegisterBlock(HEADER)                       # one for each device
header.write(0x04, 2, 0xFFFF)                        # the guest; all bounds are the block's
header[COMMAND].MEMORY                               # the device
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nagaya.abi.registers import Register
from nagaya.errors import UsageError

R = TypeVar("R", bound=Register)


@dataclass(frozen=True, slots=True, eq=False)
class RegisterAt(Generic[R]):
    """One register of a block. `writable` and `clears` are masks of what a guest's write changes."""

    name: str
    offset: int
    size: int  # bytes
    kind: type[R]  # decodes and prints the value
    reset: int = 0
    writable: int = 0
    clears: int = 0  # bits that a guest sets to 0 by writing 1


class RegisterMap:
    """The declaration of a block of `size` bytes. What no register claims reads as zero."""

    def __init__(self, size: int, registers: Iterable[RegisterAt[Any]]) -> None:
        """Raises `UsageError` if a register does not fit into the block or overlaps another."""
        self.size = size
        self.registers = tuple(registers)
        self.reset, self.writable, self.clears = bytearray(size), bytearray(size), bytearray(size)
        taken: set[int] = set()
        for one in self.registers:
            span = range(one.offset, one.offset + one.size)
            if span.stop > size or taken.intersection(span):
                raise UsageError(f"register {one.name} at {span} does not fit or overlaps another")
            taken.update(span)
            for content, value in (
                (self.reset, one.reset),
                (self.writable, one.writable),
                (self.clears, one.clears),
            ):
                content[span.start : span.stop] = value.to_bytes(one.size, "little")


class RegisterBlock:
    """The registers of one device. A guest uses `read` and `write`, the device `block[REGISTER]`."""

    def __init__(self, registers: RegisterMap) -> None:
        self.map = registers
        self._reset = bytearray(registers.reset)
        self._content = bytearray(registers.reset)
        self._writable = registers.writable
        self._before: list[tuple[range, Callable[[], None]]] = []
        self._after: list[tuple[range, RegisterAt[Any], Callable[[Any], None]]] = []

    def __getitem__(self, register: RegisterAt[R]) -> R:
        at = register.offset
        return register.kind(int.from_bytes(self._content[at : at + register.size], "little"))

    def __setitem__(self, register: RegisterAt[Any], value: int) -> None:
        at = register.offset
        self._content[at : at + register.size] = value.to_bytes(register.size, "little")

    def fill(self, offset: int, content: bytes) -> None:
        """Have `content` at `offset` now and after each reset."""
        self._content[offset : offset + len(content)] = content
        self._reset[offset : offset + len(content)] = content

    def preset(self, register: RegisterAt[Any], value: int) -> None:
        """Give `register` this value now and after each reset."""
        self.fill(register.offset, value.to_bytes(register.size, "little"))

    def allow(self, register: RegisterAt[Any], writable: int) -> None:
        """Let a guest change these bits of `register`, in this block only."""
        if self._writable is self.map.writable:
            self._writable = bytearray(self.map.writable)
        at = register.offset
        self._writable[at : at + register.size] = writable.to_bytes(register.size, "little")

    def on_read(self, register: RegisterAt[Any], refresh: Callable[[], None]) -> None:
        """Call `refresh` before a guest's read that touches `register`."""
        self._before.append((range(register.offset, register.offset + register.size), refresh))

    def on_write(self, register: RegisterAt[R], changed: Callable[[R], None]) -> None:
        """Call `changed` after a guest's write that touches `register`, with the value that it had before."""
        self._after.append((range(register.offset, register.offset + register.size), register, changed))

    def reset(self) -> None:
        """Back to the values of power-on. Calls nobody."""
        self._content[:] = self._reset

    def read(self, offset: int, size: int) -> int:
        """What a guest reads; zero beyond the block."""
        for span, refresh in self._before:
            if span.start < offset + size and offset < span.stop:
                refresh()
        return int.from_bytes(self._content[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """What a guest writes: only bits that it may change do."""
        end = min(offset + size, self.map.size)
        if offset >= end:
            return
        touched = [
            (register, changed, self[register])
            for span, register, changed in self._after
            if span.start < end and offset < span.stop
        ]
        old = int.from_bytes(self._content[offset:end], "little")
        writable = int.from_bytes(self._writable[offset:end], "little")
        clears = int.from_bytes(self.map.clears[offset:end], "little")
        new = (old & ~writable | value & writable) & ~(value & clears)
        self._content[offset:end] = new.to_bytes(end - offset, "little")
        for _register, changed, before in touched:
            changed(before)

    def __str__(self) -> str:
        return "\n".join(f"{one.offset:#05x} {one.name:<24} {self[one]}" for one in self.map.registers)
