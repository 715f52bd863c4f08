"""A vCPU's modes and exits: ports, memory that is no RAM, strings, addresses that no one claims."""

from __future__ import annotations

import pytest

from nagaya.hw.bus import Bus
from nagaya.testing.flat import MMIO, Flat, Mode, assemble
from nagaya.testing.flatcode import (
    COUNTER,
    DONE,
    is_done,
)

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize("mode", Mode)
def test_every_mode_reads_and_writes_ports(mode: Mode) -> None:
    code = assemble(
        f"""
        mov $0x1234, %dx
        in %dx, %al
        out %al, %dx
        in %dx, %ax
        out %ax, %dx
        in %dx, %eax
        out %eax, %dx
        out %al, ${DONE:#x}
        2: jmp 2b
        """,
        mode,
    )
    with Flat(code, mode) as flat:
        flat.ports.values[0x1234] = 0x8765_4321
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert flat.ports.reads == [(0x1234, 1), (0x1234, 2), (0x1234, 4)]
        assert flat.ports.written[:3] == [
            (0x1234, 1, 0x21),
            (0x1234, 2, 0x4321),
            (0x1234, 4, 0x8765_4321),
        ]


@pytest.mark.parametrize("mode", [Mode.LONG, Mode.RING3])
def test_memory_that_is_no_ram_reads_and_writes(mode: Mode) -> None:
    code = assemble(
        f"""
        mov ${MMIO:#x}, %ebx
        mov (%rbx), %al
        mov %al, (%rbx)
        mov (%rbx), %ax
        mov %ax, (%rbx)
        mov (%rbx), %eax
        mov %eax, (%rbx)
        mov (%rbx), %rax
        mov %rax, 8(%rbx)
        out %al, ${DONE:#x}
        2: jmp 2b
        """,
        mode,
    )
    with Flat(code, mode) as flat:
        flat.mmio.values[MMIO] = 0x8877_6655_4433_2211
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert flat.mmio.reads == [(MMIO, 1), (MMIO, 2), (MMIO, 4), (MMIO, 8)]
        assert flat.mmio.written == [
            (MMIO, 1, 0x11),
            (MMIO, 2, 0x2211),
            (MMIO, 4, 0x4433_2211),
            (MMIO + 8, 8, 0x8877_6655_4433_2211),
        ]


def test_strings_go_through_ports_in_order() -> None:
    code = assemble(
        f"""
        mov $text, %esi
        mov $5, %ecx
        mov $0x70, %dx
        rep outsb
        mov ${COUNTER:#x}, %edi
        mov $3, %ecx
        rep insw
        out %al, ${DONE:#x}
        2: jmp 2b
        text: .ascii "abcde"
        """,
        Mode.PROTECTED,
    )
    with Flat(code, Mode.PROTECTED) as flat:
        flat.ports.values[0x70] = 0x7A79
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert [value for port, size, value in flat.ports.written if (port, size) == (0x70, 1)] == list(
            b"abcde"
        )
        assert flat.memory.read(COUNTER, 6) == b"yzyzyz"


def test_what_no_one_claims_reads_as_ones() -> None:
    nowhere = Bus("memory", 1 << 52)
    code = assemble(
        f"mov {MMIO:#x}, %eax; mov %eax, {MMIO:#x}; out %eax, ${DONE:#x}; 2: jmp 2b", Mode.PROTECTED
    )
    with Flat(code, Mode.PROTECTED, mmio=nowhere) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert flat.ports.written == [(DONE, 4, 0xFFFF_FFFF)]
        assert nowhere.unclaimed == 2
