"""A 16550A serial port. Attach its `SIZE` bytes to the bus of I/O ports.

Nothing is timed: a byte takes no time on the wire, and the line's speed is a register that is remembered.
The pace is the host's. A byte that the host does not take stays in the transmitter's FIFO; the guest finds it
not empty and waits, as it would for a slow terminal, so one that never stops printing costs nobody memory.
Bytes for a guest that does not read stay with the host, for `receive` takes no more than the FIFO holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nagaya.abi import uart
from nagaya.abi.uart import FifoControl, InterruptEnable, LineControl, LineStatus, ModemControl, ModemStatus
from nagaya.hw.wires import Line

SIZE: Final = 8
_DIVISOR: Final = (0, 1)  # its low and its high byte, while DLAB is set
# What a connected modem says: ready, and there is a carrier.
_CONNECTED: Final = ModemStatus.of(CTS=1, DSR=1, DCD=1)
_ALL_SENT: Final = LineStatus.of(HOLDING_EMPTY=1, EMPTY=1)
_MODEM_CHANGES: Final = ModemStatus.CHANGED.mask
_RING: Final = ModemStatus.RI.mask


class Serial:
    """One port. `transmit` and `receive` are the host's side, `read` and `write` the guest's."""

    def __init__(
        self,
        line: Line,
        output: Callable[[bytes], int],
        room: Callable[[], None] = lambda: None,
    ) -> None:
        """`output` is offered bytes and says how many it takes, from the first on; it must not wait.

        When it takes bytes again after it took too few, call `transmit`. `room` is called when the guest has
        emptied the receiver, which refused bytes. Both are called within the guest's access.
        """
        self._line = line
        self._output = output
        self._room = room
        self._readers = (
            self._take,
            lambda: self._ier,
            self._identify,
            lambda: self._lcr,
            lambda: self._mcr,
            self._line_status,
            self._modem_status,
            lambda: self._scratch,
        )
        self.reset()

    def reset(self) -> None:
        """As at power-on. Bytes on their way, in either direction, are lost."""
        self._ier = InterruptEnable(0)
        self._fcr = FifoControl(0)
        self._lcr = LineControl(0)
        self._mcr = ModemControl(0)
        self._msr = ModemStatus(_CONNECTED)
        self._scratch = 0
        self._divisor = 1
        self._received = bytearray()
        self._unsent = bytearray()
        self._overrun = False
        self._refused = False  # the host has bytes that it could not deliver
        self._emptied = False  # the transmitter's interrupt: it has become empty, and nobody asked yet
        self._line.set(False)
        self._level = False

    def transmit(self) -> None:
        """Offer the host again what it did not take."""
        if self._unsent:
            self._send()
            self._update()

    def receive(self, content: bytes) -> int:
        """Bytes from the host. Says how many were taken; `room` is called when it is worth to come again."""
        if self._mcr.LOOP:
            return len(content)  # the pin is disconnected, and what comes is lost (8.6)
        taken = min(len(content), self._depth - len(self._received))
        self._refused = taken < len(content)
        self._received += content[:taken]
        self._update()
        return taken

    def read(self, offset: int, size: int) -> int:
        """One register; of a wider access, registers one after the other."""
        return sum(self._read(offset + n) << (8 * n) for n in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        """One register; of a wider access, registers one after the other."""
        for n in range(size):
            self._write(offset + n, value >> (8 * n) & 0xFF)

    @property
    def _depth(self) -> int:
        return uart.FIFO_SIZE if self._fcr.ENABLE else 1

    def _read(self, register: int) -> int:
        if self._lcr.DLAB and register in _DIVISOR:
            return self._divisor >> (8 * register) & 0xFF
        return self._readers[register]()

    def _write(self, register: int, value: int) -> None:
        if self._lcr.DLAB and register in _DIVISOR:
            self._divisor = self._divisor & ~(0xFF << (8 * register)) | value << (8 * register)
            return
        match register:
            case uart.UART_TX:
                self._put(value)
            case uart.UART_IER:
                before, self._ier = self._ier, InterruptEnable(value & 0x0F)
                # Enabled while there is nothing to send: it interrupts at once (8.8).
                if self._ier.EMPTY and not before.EMPTY and not self._unsent:
                    self._emptied = True
            case uart.UART_FCR:
                self._control_fifo(FifoControl(value))
            case uart.UART_LCR:
                self._lcr = LineControl(value)
            case uart.UART_MCR:
                self._control_modem(ModemControl(value & 0x1F))
            case uart.UART_SCR:
                self._scratch = value
            case _:
                return  # LSR and MSR are for reading
        self._update()

    def _take(self) -> int:
        """The next byte received; zero if there is none."""
        value = self._received.pop(0) if self._received else 0
        if self._refused and not self._received:
            self._refused = False
            self._room()
        self._update()
        return value

    def _put(self, value: int) -> None:
        """A byte to send. One too many is lost, as the chip loses it."""
        self._emptied = False
        if self._mcr.LOOP:
            if len(self._received) < self._depth:
                self._received.append(value)
            else:
                self._overrun = True
            self._emptied = True
        elif len(self._unsent) < self._depth:
            self._unsent.append(value)
            self._send()

    def _send(self) -> None:
        del self._unsent[: self._output(bytes(self._unsent))]
        self._emptied = not self._unsent

    def _control_fifo(self, value: FifoControl) -> None:
        switched = value.ENABLE != self._fcr.ENABLE
        if switched or (value.ENABLE and value.CLEAR_RECEIVER):
            self._received.clear()
            if self._refused:
                self._refused = False
                self._room()
        if switched or (value.ENABLE and value.CLEAR_TRANSMITTER):
            self._emptied = self._emptied or bool(self._unsent)
            self._unsent.clear()
        self._fcr = FifoControl(value & (FifoControl.ENABLE.mask | FifoControl.TRIGGER.mask))

    def _control_modem(self, value: ModemControl) -> None:
        """In a loop the modem's answers are the port's own words (8.6)."""
        self._mcr = value
        status = _CONNECTED
        if value.LOOP:
            status = ModemStatus.of(CTS=value.RTS, DSR=value.DTR, RI=value.OUT1, DCD=value.OUT2)
        changed = self._msr ^ status
        if not self._msr & _RING:
            changed &= ~_RING  # of the ring, only its end counts
        self._msr = ModemStatus(status | self._msr & _MODEM_CHANGES | changed >> 4)

    def _line_status(self) -> int:
        status = 0 if self._unsent else _ALL_SENT
        if self._received:
            status |= LineStatus.READY.mask
        if self._overrun:
            status |= LineStatus.OVERRUN.mask
            self._overrun = False
            self._update()
        return status

    def _modem_status(self) -> int:
        status = self._msr
        self._msr = ModemStatus(status & ~_MODEM_CHANGES)
        self._update()
        return status

    def _cause(self) -> int:
        """The most urgent interrupt (8.5, table 4)."""
        if not self._ier:
            return uart.UART_IIR_NO_INT
        if self._ier.LINE and self._overrun:
            return uart.UART_IIR_RLSI
        if self._ier.RECEIVED and self._received:
            # Fewer than the trigger level interrupt after a time; here no time passes.
            full = not self._fcr.ENABLE or len(self._received) >= uart.TRIGGER_LEVELS[self._fcr.TRIGGER]
            return uart.UART_IIR_RDI if full else uart.UART_IIR_RX_TIMEOUT
        if self._ier.EMPTY and self._emptied:
            return uart.UART_IIR_THRI
        if self._ier.MODEM and self._msr & _MODEM_CHANGES:
            return uart.UART_IIR_MSI
        return uart.UART_IIR_NO_INT

    def _identify(self) -> int:
        """IIR. To be told that the transmitter is empty ends that interrupt."""
        cause = self._cause()
        if cause == uart.UART_IIR_THRI:
            self._emptied = False
            self._update()
        return cause | (uart.UART_IIR_FIFO_ENABLED if self._fcr.ENABLE else 0)

    def _update(self) -> None:
        level = self._cause() != uart.UART_IIR_NO_INT
        if level != self._level:
            self._level = level
            self._line.set(level)
