"""vCPUs: modes, exits, interrupts, SMP, pause, failures. A few instructions each, on the real KVM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from nagaya.abi import kvm, x86
from nagaya.errors import ConflictError, MachineFailedError, UnsupportedError
from nagaya.hw import layout
from nagaya.hw.bus import Bus
from nagaya.kvm import msrs
from nagaya.kvm.models import MODELS, Leaves
from nagaya.kvm.probe import probe
from nagaya.kvm.vcpus import State, Vcpus
from nagaya.testing.flat import CODE, CODE_SELECTOR, IDT, MMIO, Flat, Mode, assemble

pytestmark = pytest.mark.kvm

DONE = 0x99  # a port
COUNTER = 0x6000
VECTOR = 0x40


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


def is_done(flat: Flat) -> bool:
    return any(port == DONE for port, _, _ in flat.ports.written)


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


def interrupts_seen(flat: Flat) -> int:
    return sum(port == 0x80 for port, _, _ in flat.ports.written)


def has_seen(flat: Flat, count: int) -> bool:
    return interrupts_seen(flat) == count


def has_more(log: Sequence[object], length: int) -> bool:
    return len(log) > length


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


CPUS = 4  # more than the smallest host has


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


@pytest.mark.parametrize("mode", [Mode.PROTECTED, Mode.RING3])
def test_a_paused_guest_stands_still(mode: Mode) -> None:
    with Flat(assemble(SPIN, mode), mode) as flat:
        flat.run()
        for _ in range(3):
            before = flat.word(COUNTER)
            while flat.word(COUNTER) == before:
                time.sleep(0.001)
            flat.vcpus.pause()
            stopped = flat.word(COUNTER)
            time.sleep(0.02)
            assert flat.word(COUNTER) == stopped
            flat.vcpus.resume()


def test_no_kick_is_lost() -> None:
    """Guests that exit, spin and sleep are paused at any moment of their loops."""
    code = assemble(
        """
        jmp 1f
        1: smsw %ax
        test $1, %al
        jz 3f
        2: jmp 2b
        3: out %al, $0x80
        jmp 3b
        """,
        Mode.REAL,
    )
    with Flat(code, Mode.REAL, cpus=CPUS) as flat:
        flat.ports.write = lambda *_: None  # type: ignore[method-assign]
        for _ in range(1000):
            flat.run()
            flat.vcpus.pause()
        assert flat.vcpus.state is State.PAUSED


class Stopper:
    """Stops the guest within each access."""

    def __init__(self) -> None:
        self.accesses = 0
        self.vcpus: Vcpus | None = None

    def read(self, address: int, size: int) -> int:
        self.write(address, size, 0)
        return 0x5A

    def write(self, address: int, size: int, value: int) -> None:
        assert self.vcpus is not None
        self.accesses += 1
        self.vcpus.request_pause()

    def stop(self, flat: Flat, count: int) -> None:
        """Let the guest run into its access number `count`."""
        self.vcpus = flat.vcpus
        flat.run()
        while self.accesses < count:
            time.sleep(0.001)
        flat.vcpus.pause()


def test_a_device_can_stop_the_guest_within_its_access() -> None:
    code = assemble(f"out %al, $0x80; incl {COUNTER:#x}; 2: out %al, $0x80; jmp 2b", Mode.PROTECTED)
    stopper = Stopper()
    with Flat(code, Mode.PROTECTED, ports=stopper) as flat:
        stopper.stop(flat, 1)
        assert (stopper.accesses, flat.word(COUNTER)) == (1, 0)
        stopper.stop(flat, 2)
        assert (stopper.accesses, flat.word(COUNTER)) == (2, 1)


@pytest.mark.parametrize("source", ["in $0x80, %al", f"mov {MMIO:#x}, %al"])
def test_a_paused_vcpu_has_finished_its_instruction(source: str) -> None:
    code = assemble(source, Mode.PROTECTED)
    stopper = Stopper()
    with Flat(code, Mode.PROTECTED, ports=stopper, mmio=stopper) as flat:
        stopper.stop(flat, 1)
        regs = flat.vcpu.get_regs()
        assert (regs.rip, regs.rax & 0xFF) == (CODE + len(code), 0x5A)


def test_a_kick_arrives_though_its_maker_blocks_signals() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with Flat(assemble(SPIN, Mode.RING3), Mode.RING3) as flat:
            flat.run()
            while not flat.word(COUNTER):
                time.sleep(0.001)
            flat.vcpus.pause()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_an_exit_storm_does_not_starve_a_pause() -> None:
    code = assemble("jmp 2f; 2: out %al, $0x80; jmp 2b", Mode.REAL)
    with Flat(code, Mode.REAL) as flat:
        flat.run()
        for _ in range(100):
            seen = len(flat.ports.written)
            flat.wait(partial(has_more, flat.ports.written, seen))
            flat.vcpus.pause()
            flat.vcpus.resume()
            with flat.lock:  # the main thread gets at the devices too
                flat.ports.written.clear()


def failure(flat: Flat) -> MachineFailedError:
    flat.run()
    with flat.changed:
        assert flat.changed.wait_for(lambda: flat.failures, 30)
    return flat.failures[0]


def test_a_triple_fault_is_a_failure_with_registers() -> None:
    with Flat(assemble("ud2", Mode.PROTECTED), Mode.PROTECTED) as flat:
        sregs = flat.vcpu.get_sregs()
        sregs.idt = kvm.Dtable(base=0, limit=0)
        flat.vcpu.set_sregs(sregs)
        error = failure(flat)
        assert error.facts["cause"] == "triple fault"
        assert "vCPU 0: triple fault at rip 0x" in error.message


def test_an_instruction_that_kvm_cannot_emulate_is_a_failure_with_its_bytes() -> None:
    with Flat(assemble(f"mov ${MMIO:#x}, %ebx; mulps (%rbx), %xmm0", Mode.LONG), Mode.LONG) as flat:
        assert "cannot emulate 0f 59 03" in failure(flat).message


def test_a_device_that_raises_ends_the_machine_with_the_cause() -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            return 1 // (address - address)

        def write(self, address: int, size: int, value: int) -> None:
            raise AssertionError

    with Flat(assemble("in $0x70, %al", Mode.PROTECTED), Mode.PROTECTED, ports=Broken()) as flat:
        error = failure(flat)
        assert "internal error: ZeroDivisionError" in error.message
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_when_one_vcpu_fails_the_others_can_be_paused() -> None:
    class Broken:
        def read(self, address: int, size: int) -> int:
            raise ValueError("broken")

        def write(self, address: int, size: int, value: int) -> None:
            raise ValueError("broken")

    code = assemble("jmp 2f; 2: in $0x70, %al; 3: jmp 3b", Mode.REAL)
    with Flat(code, Mode.REAL, cpus=2, ports=Broken()) as flat:
        failure(flat)
        flat.vcpus.pause()
        assert len(flat.failures) == 1


def test_msrs_outside_the_filter_are_a_general_protection_fault() -> None:
    code = assemble(
        f"""
        {gate(13, "handler")}
        mov $0xc1, %ecx
        rdmsr
        2: jmp 2b
        handler: out %al, ${DONE:#x}
        3: jmp 3b
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        assert not flat.vm.filters_msrs or flat.vcpu.refused_msrs == {0xC1: 1}


def test_int3_and_fwait_work_in_ring_0() -> None:
    """On a host that emulates ring 0 the completer finishes them."""
    code = assemble(
        f"""
        {gate(3, "handler")}
        fwait
        int3
        behind: out %al, ${DONE:#x}
        2: jmp 2b
        handler: pop %rax; push %rax; out %eax, $0x80; iretq
        """,
        Mode.LONG,
    )
    with Flat(code, Mode.LONG) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        (port, _, returns_to), _ = flat.ports.written
        assert port == 0x80
        assert flat.memory.read(returns_to, 2) == b"\xe6\x99"  # the instruction at `behind`
        assert set(flat.vcpu.completed) <= {"int3", "fwait"}


@pytest.mark.parametrize("model", MODELS)
def test_a_guest_sees_its_model(model: str) -> None:
    """In ring 0: some hosts let the CPU's own CPUID through in ring 3."""
    code = assemble(
        f"""
        mov $1, %eax
        cpuid
        mov %eax, %esi
        mov %ebx, %eax
        out %eax, $0x80
        mov %ecx, %eax
        out %eax, $0x80
        mov $0x40000000, %eax
        cpuid
        mov %ebx, %eax
        out %eax, $0x80
        out %al, ${DONE:#x}
        2: jmp 2b
        """,
        Mode.PROTECTED,
    )
    if model not in probe().models:
        with pytest.raises(UnsupportedError, match="KVM on this host does not give"):
            Flat(code, Mode.PROTECTED, model=model)
        return
    with Flat(code, Mode.PROTECTED, model=model) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))
        seen = [value for port, _, value in flat.ports.written if port == 0x80]
        flat.vcpus.pause()
        promised = Leaves(flat.vcpu.get_cpuid())
        assert seen == [
            promised.word((1, 0, "ebx")),
            promised.word((1, 0, "ecx")),
            int.from_bytes(x86.KVM_SIGNATURE[:4], "little"),
        ]
        assert x86.Leaf1Ecx(seen[1]).HYPERVISOR


def test_power_on_msrs_are_taken() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat:
        flat.vcpu.set_msrs(msrs.initial())
        assert flat.vcpu.get_msrs(msrs.initial()) == msrs.initial()


def test_an_msr_that_kvm_refuses_is_named() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat, pytest.raises(UnsupportedError, match="MSR 0x12345678 = 0x1"):
        flat.vcpu.set_msrs({x86.MSR_IA32_TSC: 0, 0x1234_5678: 1})


def test_an_idle_guest_does_nothing_on_the_host() -> None:
    with Flat(interrupt_counter(), Mode.LONG, cpus=2) as flat:
        flat.run()
        flat.wait(lambda: is_done(flat))

        def switches() -> list[str]:
            return [
                line
                for tid in flat.vcpus.thread_ids.values()
                for line in Path(f"/proc/self/task/{tid}/status").read_text().splitlines()
                if "ctxt_switches" in line
            ]

        deadline = time.monotonic() + 30
        before, now = [""], switches()
        while now != before:  # the kernel updates the clock some 100 ms after the start
            assert time.monotonic() < deadline, "something wakes it up again and again"
            time.sleep(0.5)
            before, now = now, switches()


def test_the_state_of_a_running_vcpu_is_refused() -> None:
    with Flat(assemble(SPIN, Mode.PROTECTED), Mode.PROTECTED) as flat:
        flat.run()
        while not flat.word(COUNTER):
            time.sleep(0.001)
        with pytest.raises(ConflictError, match="vCPU 0 is running"):
            flat.vcpu.get_regs()
        flat.vcpus.pause()
        assert flat.vcpu.get_regs().rip in range(CODE, CODE + 16)


def test_the_clock_runs_and_can_be_set() -> None:
    with Flat(b"\xf4", Mode.PROTECTED) as flat:
        first = flat.vm.get_clock()
        assert flat.vm.get_clock() > first
        flat.vm.set_clock(3600 * 10**9)
        assert 3600 * 10**9 <= flat.vm.get_clock() < 3700 * 10**9


def test_registers_are_what_was_set() -> None:
    with Flat(b"\xf4", Mode.LONG) as flat:
        flat.vcpu.set_regs(kvm.Regs(rax=1, r15=2**64 - 1, rip=CODE, rflags=2))
        regs = flat.vcpu.get_regs()
        assert (regs.rax, regs.r15, regs.rip) == (1, 2**64 - 1, CODE)
        assert x86.EFER(flat.vcpu.get_sregs().efer).LMA
