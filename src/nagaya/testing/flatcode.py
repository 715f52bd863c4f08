"""Pieces of assembly for guests of `nagaya.testing.flat`, and what they leave behind."""

from __future__ import annotations

from nagaya.hw import layout
from nagaya.testing.flat import CODE_SELECTOR, IDT, Flat, Mode, assemble

DONE = 0x99  # a port
COUNTER = 0x6000
VECTOR = 0x40
CPUS = 4  # more than the smallest host has


def gate(vector: int, handler: str) -> str:
    """Assembly that makes `handler` (a label) the gate of `vector` in long mode."""
    return f"""
        mov ${handler}, %eax
        mov %ax, {IDT + 16 * vector:#x}
        movw ${CODE_SELECTOR}, {IDT + 16 * vector + 2:#x}
        movw $0x8e00, {IDT + 16 * vector + 4:#x}
    """


def store(address: int, value: int) -> str:
    """Assembly that stores 32 bits anywhere below 4 GiB."""
    return f"mov ${address:#x}, %edi; movl ${value:#x}, (%edi)"


APIC_ON = store(layout.LAPIC + 0xF0, 0x1FF)
EOI = store(layout.LAPIC + 0xB0, 0)
SPIN = f"1: incl {COUNTER:#x}; jmp 1b"


def interrupt_counter(handled: str = "") -> bytes:
    """A guest that sleeps, and counts interrupts at `COUNTER`."""
    return assemble(
        f"""
        {gate(VECTOR, "handler")}
        {APIC_ON}
        out %al, ${DONE:#x}
        sti
        2: hlt
        jmp 2b
        handler:
        incl {COUNTER:#x}
        {EOI}
        out %al, $0x80
        {handled}
        iretq
        """,
        Mode.LONG,
    )


def is_done(flat: Flat) -> bool:
    """Whether the guest has written to `DONE`."""
    return any(port == DONE for port, _, _ in flat.ports.written)
