"""Interrupts, doorbells and the start of further vCPUs."""

from __future__ import annotations

import os
from functools import partial

import pytest

from nagaya.hw import layout
from nagaya.testing.flat import CODE, MMIO, Flat, Mode, assemble
from nagaya.testing.flatcode import (
    APIC_ON,
    COUNTER,
    CPUS,
    DONE,
    EOI,
    VECTOR,
    gate,
    interrupt_counter,
    is_done,
    store,
)

pytestmark = pytest.mark.kvm


def interrupts_seen(flat: Flat) -> int:
    return sum(port == 0x80 for port, _, _ in flat.ports.written)


def has_seen(flat: Flat, count: int) -> bool:
    return interrupts_seen(flat) == count


def test_a_signalled_vector_wakes_a_sleeping_guest() -> None:
    with Flat(interrupt_counter(), Mode.LONG) as flat:
        vector = flat.interrupts.vector()
        vector.unmask(layout.LAPIC, VECTOR)
        flat.run()
        flat.wait(lambda: is_done(flat))
        for count in range(1, 6):
            os.eventfd_write(vector.fd, 1)
            flat.wait(partial(has_seen, flat, count))
        assert flat.word(COUNTER) == 5
        vector.close()


def test_a_masked_vector_collects_signals_and_delivers_one() -> None:
    with Flat(interrupt_counter(), Mode.LONG) as flat:
        vector = flat.interrupts.vector()
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert not vector.pending()
        for _ in range(3):
            os.eventfd_write(vector.fd, 1)
        assert vector.pending()
        vector.unmask(layout.LAPIC, VECTOR)
        flat.wait(lambda: interrupts_seen(flat) == 1)
        assert not vector.pending()
        vector.mask()
        os.eventfd_write(vector.fd, 1)
        assert vector.pending()
        assert interrupts_seen(flat) == 1
        vector.close()


def test_a_vector_can_move_to_another_message() -> None:
    code = assemble(
        f"""
        {gate(VECTOR, "first")}
        {gate(VECTOR + 1, "second")}
        {APIC_ON}
        out %al, ${DONE:#x}
        sti
        2: hlt
        jmp 2b
        first: {EOI}; mov $1, %al; out %al, $0x80; iretq
        second: {EOI}; mov $2, %al; out %al, $0x80; iretq
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        vector = flat.interrupts.vector()
        vector.unmask(layout.LAPIC, VECTOR)
        flat.run()
        flat.wait(lambda: is_done(flat))
        os.eventfd_write(vector.fd, 1)
        flat.wait(lambda: (0x80, 1, 1) in flat.ports.written)
        vector.unmask(layout.LAPIC, VECTOR + 1)
        os.eventfd_write(vector.fd, 1)
        flat.wait(lambda: (0x80, 1, 2) in flat.ports.written)
        vector.close()


def test_a_line_interrupts_through_the_io_apic() -> None:
    code = assemble(
        f"""
        {gate(VECTOR, "handler")}
        {APIC_ON}
        {store(layout.IOAPIC, 0x18)}
        {store(layout.IOAPIC + 0x10, VECTOR)}
        out %al, ${DONE:#x}
        sti
        2: hlt
        jmp 2b
        handler: {EOI}; out %al, $0x80; iretq
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        line = flat.interrupts.line(4)  # redirection register 0x10 + 2 * 4
        flat.run()
        flat.wait(lambda: is_done(flat))
        for count in (1, 2):
            line.set(True)
            flat.wait(partial(has_seen, flat, count))
            line.set(True)  # no edge
            line.set(False)
        assert interrupts_seen(flat) == 2


@pytest.mark.parametrize("match", [None, 7])
def test_a_doorbell_rings_without_an_exit(match: int | None) -> None:
    code = assemble(
        f"movw $7, {MMIO:#x}; movw $8, {MMIO + 2:#x}; out %al, ${DONE:#x}; 2: jmp 2b", Mode.PROTECTED
    )
    with Flat(code, Mode.PROTECTED) as flat:
        bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        flat.doorbells.bind(bells[0], MMIO, 2, match)
        flat.doorbells.bind(bells[1], MMIO + 2, 2, match)
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert os.eventfd_read(bells[0]) == 1
        if match is None:
            assert os.eventfd_read(bells[1]) == 1
            assert flat.mmio.written == []
        else:  # 8 was written there
            with pytest.raises(BlockingIOError):
                os.eventfd_read(bells[1])
            assert flat.mmio.written == [(MMIO + 2, 2, 8)]
        flat.doorbells.unbind(bells[0], MMIO, 2, match)
        flat.doorbells.unbind(bells[1], MMIO + 2, 2, match)
        for bell in bells:
            os.close(bell)


def test_application_processors_start_by_ipi() -> None:
    # Every processor begins at CODE: the first in protected mode, the others in real mode. `jmp` by mode:
    # 0xeb is a short jump in both.
    code = assemble(
        f"""
        .code16
        jmp 1f
        .code32
        boot: {APIC_ON}
        {store(layout.LAPIC + 0x300, 0xC4500)} /* INIT to all others */
        {store(layout.LAPIC + 0x300, 0xC4600 | CODE >> 12)} /* start-up at CODE */
        2: hlt
        jmp 2b
        .code16
        1: smsw %ax
        test $1, %al
        jnz boot
        mov $1, %eax
        cpuid
        shr $24, %ebx
        mov %bl, %al
        out %al, ${DONE:#x}
        2: hlt
        jmp 2b
        """,
        Mode.REAL,
    )
    with Flat(code, Mode.PROTECTED, cpus=CPUS) as flat:
        flat.run()
        flat.wait(lambda: len(flat.ports.written) == CPUS - 1)
        assert sorted(flat.ports.written) == [(DONE, 1, index) for index in range(1, CPUS)]
