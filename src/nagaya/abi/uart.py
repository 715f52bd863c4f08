"""The 16550A's registers (National Semiconductor PC16550D, 1995, section 8; linux/serial_reg.h's names)."""

from __future__ import annotations

from nagaya.abi.registers import Bits, Register, bit

# Offsets. The first two are the divisor while LCR's DLAB is set.
UART_RX = 0  # read
UART_TX = 0  # write
UART_IER = 1
UART_IIR = 2  # read
UART_FCR = 2  # write
UART_LCR = 3
UART_MCR = 4
UART_LSR = 5
UART_MSR = 6
UART_SCR = 7

FIFO_SIZE = 16


class InterruptEnable(Register):
    """UART_IER: what interrupts."""

    RECEIVED = bit(0)
    EMPTY = bit(1)
    LINE = bit(2)
    MODEM = bit(3)


class FifoControl(Register):
    """UART_FCR."""

    ENABLE = bit(0)
    CLEAR_RECEIVER = bit(1)
    CLEAR_TRANSMITTER = bit(2)
    TRIGGER = Bits(6, 7)  # TRIGGER_LEVELS


TRIGGER_LEVELS = (1, 4, 8, 14)

# UART_IIR: why it interrupts, most urgent first, and that the FIFOs are on.
UART_IIR_RLSI = 0x06
UART_IIR_RDI = 0x04
UART_IIR_RX_TIMEOUT = 0x0C
UART_IIR_THRI = 0x02
UART_IIR_MSI = 0x00
UART_IIR_NO_INT = 0x01
UART_IIR_FIFO_ENABLED = 0xC0


class LineControl(Register):
    """UART_LCR: the frame, which nothing here depends on, and the divisor latch."""

    FRAME = Bits(0, 5)
    BREAK = bit(6)
    DLAB = bit(7)


class ModemControl(Register):
    """UART_MCR: what the port says to the modem."""

    DTR = bit(0)
    RTS = bit(1)
    OUT1 = bit(2)
    OUT2 = bit(3)
    LOOP = bit(4)


class LineStatus(Register):
    """UART_LSR."""

    READY = bit(0)
    OVERRUN = bit(1)
    HOLDING_EMPTY = bit(5)
    EMPTY = bit(6)


class ModemStatus(Register):
    """UART_MSR: what the modem says, and what of it has changed."""

    CHANGED = Bits(0, 3)
    CTS = bit(4)
    DSR = bit(5)
    RI = bit(6)
    DCD = bit(7)
