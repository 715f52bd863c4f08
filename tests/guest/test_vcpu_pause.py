"""A guest is paused at any moment of its loop, and no kick is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from functools import partial

import pytest

from nagaya.kvm.vcpus import State, Vcpus
from nagaya.testing.flat import CODE, MMIO, Flat, Mode, assemble
from nagaya.testing.flatcode import (
    COUNTER,
    CPUS,
    SPIN,
)

pytestmark = pytest.mark.kvm


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


def has_more(log: Sequence[object], length: int) -> bool:
    return len(log) > length


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
