"""The 16550A, as a driver sees it and as the host does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.abi.uart import (
    UART_FCR,
    UART_IER,
    UART_IIR,
    UART_LCR,
    UART_LSR,
    UART_MCR,
    UART_MSR,
    UART_RX,
    UART_SCR,
    UART_TX,
    FifoControl,
    InterruptEnable,
    LineControl,
    LineStatus,
    ModemControl,
    ModemStatus,
)
from nagaya.hw.serial import SIZE, Serial
from nagaya.testing.wires import FakeLine

IDLE = LineStatus.of(HOLDING_EMPTY=1, EMPTY=1)


class Host:
    """The host's end of the line, which takes `credit` bytes."""

    def __init__(self) -> None:
        self.credit = 1 << 30
        self.output = bytearray()
        self.rooms = 0
        self.line = FakeLine()
        self.port = Serial(self.line, self.take, self.room)

    def take(self, content: bytes) -> int:
        taken = content[: self.credit]
        self.credit -= len(taken)
        self.output += taken
        return len(taken)

    def room(self) -> None:
        self.rooms += 1

    def print(self, text: bytes) -> None:
        for byte in text:
            self.port.write(UART_TX, 1, byte)

    def fifo(self, trigger: int = 0) -> None:
        self.port.write(UART_FCR, 1, FifoControl.of(ENABLE=1, TRIGGER=trigger))


@pytest.fixture
def host() -> Host:
    return Host()


def test_output_comes_out_and_the_transmitter_is_empty(host: Host) -> None:
    host.print(b"hello")
    assert bytes(host.output) == b"hello"
    assert host.port.read(UART_LSR, 1) == IDLE


def test_a_driver_that_sends_by_interrupts_is_told_after_each_fifo(host: Host) -> None:
    host.fifo()
    host.port.write(UART_IER, 1, InterruptEnable.of(EMPTY=1))
    assert host.line.edges == 1
    assert host.port.read(UART_IIR, 1) == 0xC2
    assert host.port.read(UART_IIR, 1) == 0xC1
    assert not host.line.level
    host.print(b"0123456789abcdef")
    assert host.line.edges > 1
    assert host.port.read(UART_IIR, 1) == 0xC2
    assert bytes(host.output) == b"0123456789abcdef"


def test_a_host_that_takes_nothing_stops_the_guest_and_nothing_grows(host: Host) -> None:
    host.fifo()
    host.port.write(UART_IER, 1, InterruptEnable.of(EMPTY=1))
    host.credit = 3
    host.print(b"0123456789abcdef and much more that is lost")
    assert host.port.read(UART_LSR, 1) == 0
    assert not host.line.level
    host.credit = 1
    host.port.transmit()
    assert host.port.read(UART_LSR, 1) == 0
    host.credit = 100
    host.port.transmit()
    assert bytes(host.output) == b"0123456789abcdef an"
    assert host.port.read(UART_LSR, 1) == IDLE
    assert host.port.read(UART_IIR, 1) == 0xC2


def test_input_waits_with_the_host_while_the_fifo_is_full(host: Host) -> None:
    host.fifo(trigger=3)
    host.port.write(UART_IER, 1, InterruptEnable.of(RECEIVED=1))
    assert host.port.receive(b"0123456789abcdefgh") == 16
    assert host.port.receive(b"gh") == 0
    assert host.port.read(UART_IIR, 1) == 0xC4
    got = bytes(host.port.read(UART_RX, 1) for _ in range(15))
    assert (got, host.rooms) == (b"0123456789abcde", 0)
    assert host.port.read(UART_IIR, 1) == 0xCC
    assert host.port.read(UART_RX, 1) == ord("f")
    assert (host.rooms, host.line.level) == (1, False)
    assert host.port.receive(b"gh") == 2


def test_without_fifo_it_holds_one_byte(host: Host) -> None:
    host.port.write(UART_IER, 1, InterruptEnable.of(RECEIVED=1))
    assert host.port.receive(b"ab") == 1
    assert host.port.read(UART_IIR, 1) == 0x04
    assert host.port.read(UART_LSR, 1) == IDLE | LineStatus.of(READY=1)
    host.port.write(UART_FCR, 1, FifoControl.of(ENABLE=1))
    assert host.port.read(UART_LSR, 1) == IDLE
    assert host.rooms == 1


def test_the_divisor_hides_two_registers(host: Host) -> None:
    host.port.write(UART_IER, 1, 0xFF)
    assert host.port.read(UART_IER, 1) == 0x0F
    host.port.write(UART_LCR, 1, LineControl.of(FRAME=3, DLAB=1))
    host.port.write(0, 2, 0x1234)
    assert host.port.read(0, 2) == 0x1234
    host.port.write(UART_LCR, 1, 3)
    assert host.port.read(UART_IER, 1) == 0x0F
    assert host.output == b""


def test_linux_takes_it_for_a_16550a(host: Host) -> None:
    """The steps of autoconfig() in drivers/tty/serial/8250/8250_port.c."""
    read, write = host.port.read, host.port.write
    write(UART_IER, 1, 0)
    assert read(UART_IER, 1) == 0
    write(UART_IER, 1, 0x0F)
    assert read(UART_IER, 1) == 0x0F
    write(UART_IER, 1, 0)
    write(UART_MCR, 1, ModemControl.of(LOOP=1, RTS=1, OUT2=1))
    assert read(UART_MSR, 1) & 0xF0 == 0x90
    write(UART_MCR, 1, 0)
    write(UART_LCR, 1, 0xBF)
    assert read(UART_IIR, 1) != 0, "an extended feature register: a 16650"
    write(UART_LCR, 1, 0)
    write(UART_FCR, 1, 1)
    assert read(UART_IIR, 1) >> 6 == 3
    write(UART_FCR, 1, 0x21)
    assert read(UART_IIR, 1) >> 5 == 6, "a 16750"
    for pattern in (0x55, 0xAA):
        write(UART_SCR, 1, pattern)
        assert read(UART_SCR, 1) == pattern


def test_a_loop_gives_back_what_is_sent_and_overruns(host: Host) -> None:
    host.fifo()
    host.port.write(UART_IER, 1, InterruptEnable.of(LINE=1))
    host.port.write(UART_MCR, 1, ModemControl.of(LOOP=1))
    assert host.port.receive(b"lost") == 4
    host.print(b"0123456789abcdefg")
    assert host.port.read(UART_IIR, 1) == 0xC6
    assert host.port.read(UART_LSR, 1) == IDLE | LineStatus.of(READY=1, OVERRUN=1)
    assert host.port.read(UART_LSR, 1) == IDLE | LineStatus.of(READY=1)
    assert not host.line.level
    assert bytes(host.port.read(UART_RX, 1) for _ in range(16)) == b"0123456789abcdef"
    assert host.output == b""


def test_modem_changes_interrupt_once(host: Host) -> None:
    assert host.port.read(UART_MSR, 1) == ModemStatus.of(CTS=1, DSR=1, DCD=1)
    host.port.write(UART_IER, 1, InterruptEnable.of(MODEM=1))
    host.port.write(UART_MCR, 1, ModemControl.of(LOOP=1, DTR=1, OUT1=1))
    assert host.port.read(UART_IIR, 1) == 0
    assert host.port.read(UART_MSR, 1) == ModemStatus.of(CHANGED=9, DSR=1, RI=1)
    assert host.port.read(UART_MSR, 1) == ModemStatus.of(DSR=1, RI=1)
    host.port.write(UART_MCR, 1, ModemControl.of(LOOP=1, DTR=1))
    assert host.port.read(UART_MSR, 1) == ModemStatus.of(CHANGED=4, DSR=1)
    assert not host.line.level


def test_reset_forgets_all(host: Host) -> None:
    host.fifo()
    host.port.write(UART_IER, 1, 0x0F)
    host.port.receive(b"x")
    host.credit = 0
    host.print(b"y")
    host.port.reset()
    assert not host.line.level
    assert [host.port.read(at, 1) for at in range(SIZE)] == [0, 0, 1, 0, 0, IDLE, 0xB0, 0]
    host.credit = 1
    host.port.transmit()
    assert host.output == b""


OPERATION = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
    st.tuples(st.just("receive"), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("credit"), st.integers(0, 20), st.just(0)),
)


@given(st.lists(OPERATION, max_size=80))
def test_no_guest_makes_it_raise_or_grow(operations: list[tuple[str, int, int]]) -> None:
    host = Host()
    host.credit = 0
    for what, first, second in operations:
        match what:
            case "read":
                assert 0 <= host.port.read(first, 1) <= 0xFF
            case "write":
                host.port.write(first, 1, second)
            case "receive":
                taken = host.port.receive(b"x" * first)
                assert taken <= first
            case _:
                host.credit = first
                host.port.transmit()
                assert host.credit == 0 or host.port.read(UART_LSR, 1) & LineStatus.HOLDING_EMPTY.mask
        interrupt = not host.port._cause() & 1
        assert host.line.level == interrupt
        assert len(host.port._unsent) <= 16
        assert len(host.port._received) <= 16


@given(st.binary(max_size=200), st.lists(st.integers(0, 30), max_size=50))
def test_what_a_waiting_guest_prints_arrives_whole(text: bytes, payments: list[int]) -> None:
    host = Host()
    host.credit = 0
    host.fifo()
    left = bytearray(text)
    for credit in [*payments, 1000]:
        host.credit += credit
        host.port.transmit()
        while left and host.port.read(UART_LSR, 1) & LineStatus.HOLDING_EMPTY.mask:
            host.print(bytes(left[:16]))
            del left[:16]
    assert bytes(host.output) == text
