"""Offsets and bits of PCI and of the 16550 against the kernel's headers, where they are installed."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from nagaya.abi import pci, uart
from nagaya.abi.registers import Register

INCLUDE = Path("/usr/include/linux")
DEFINITION = re.compile(r"^#\s*define\s+(\w+)\s+\(?(0[xX][0-9a-fA-F]+|\d+)U?L?\)?\s*$")

# Our fields, and the kernel's masks of them.
FIELDS = {
    pci.Command: {
        "IO": "PCI_COMMAND_IO",
        "MEMORY": "PCI_COMMAND_MEMORY",
        "BUS_MASTER": "PCI_COMMAND_MASTER",
        "PARITY": "PCI_COMMAND_PARITY",
        "SERR": "PCI_COMMAND_SERR",
        "INTX_DISABLE": "PCI_COMMAND_INTX_DISABLE",
    },
    pci.Status: {"INTERRUPT": "PCI_STATUS_INTERRUPT", "CAPABILITIES": "PCI_STATUS_CAP_LIST"},
    pci.BridgeControl: {
        "PARITY": "PCI_BRIDGE_CTL_PARITY",
        "SERR": "PCI_BRIDGE_CTL_SERR",
        "BUS_RESET": "PCI_BRIDGE_CTL_BUS_RESET",
    },
    pci.ExpressFlags: {
        "VERSION": "PCI_EXP_FLAGS_VERS",
        "TYPE": "PCI_EXP_FLAGS_TYPE",
        "SLOT": "PCI_EXP_FLAGS_SLOT",
        "MESSAGE": "PCI_EXP_FLAGS_IRQ",
    },
    pci.DeviceCapabilities: {
        "PAYLOAD": "PCI_EXP_DEVCAP_PAYLOAD",
        "EXTENDED_TAG": "PCI_EXP_DEVCAP_EXT_TAG",
        "ROLE_BASED_ERRORS": "PCI_EXP_DEVCAP_RBER",
    },
    pci.DeviceControl: {
        "RELAXED_ORDERING": "PCI_EXP_DEVCTL_RELAX_EN",
        "PAYLOAD": "PCI_EXP_DEVCTL_PAYLOAD",
        "EXTENDED_TAG": "PCI_EXP_DEVCTL_EXT_TAG",
        "NO_SNOOP": "PCI_EXP_DEVCTL_NOSNOOP_EN",
        "READ_REQUEST": "PCI_EXP_DEVCTL_READRQ",
    },
    pci.LinkCapabilities: {
        "SPEED": "PCI_EXP_LNKCAP_SLS",
        "WIDTH": "PCI_EXP_LNKCAP_MLW",
        "ACTIVE_REPORTING": "PCI_EXP_LNKCAP_DLLLARC",
        "PORT": "PCI_EXP_LNKCAP_PN",
    },
    pci.LinkControl: {
        "ASPM": "PCI_EXP_LNKCTL_ASPMC",
        "DISABLE": "PCI_EXP_LNKCTL_LD",
        "RETRAIN": "PCI_EXP_LNKCTL_RL",
        "COMMON_CLOCK": "PCI_EXP_LNKCTL_CCC",
    },
    pci.LinkStatus: {
        "SPEED": "PCI_EXP_LNKSTA_CLS",
        "WIDTH": "PCI_EXP_LNKSTA_NLW",
        "ACTIVE": "PCI_EXP_LNKSTA_DLLLA",
    },
    pci.SlotCapabilities: {
        "ATTENTION_BUTTON": "PCI_EXP_SLTCAP_ABP",
        "POWER_CONTROLLER": "PCI_EXP_SLTCAP_PCP",
        "ATTENTION_INDICATOR": "PCI_EXP_SLTCAP_AIP",
        "POWER_INDICATOR": "PCI_EXP_SLTCAP_PIP",
        "SURPRISE": "PCI_EXP_SLTCAP_HPS",
        "HOT_PLUG": "PCI_EXP_SLTCAP_HPC",
        "NO_COMMAND_COMPLETED": "PCI_EXP_SLTCAP_NCCS",
        "NUMBER": "PCI_EXP_SLTCAP_PSN",
    },
    pci.SlotControl: {
        "BUTTON_ENABLE": "PCI_EXP_SLTCTL_ABPE",
        "PRESENCE_ENABLE": "PCI_EXP_SLTCTL_PDCE",
        "COMMAND_ENABLE": "PCI_EXP_SLTCTL_CCIE",
        "INTERRUPT_ENABLE": "PCI_EXP_SLTCTL_HPIE",
        "ATTENTION": "PCI_EXP_SLTCTL_AIC",
        "POWER": "PCI_EXP_SLTCTL_PIC",
        "POWER_OFF": "PCI_EXP_SLTCTL_PCC",
        "LINK_ENABLE": "PCI_EXP_SLTCTL_DLLSCE",
    },
    pci.SlotStatus: {
        "BUTTON": "PCI_EXP_SLTSTA_ABP",
        "PRESENCE_CHANGED": "PCI_EXP_SLTSTA_PDC",
        "COMMAND_COMPLETED": "PCI_EXP_SLTSTA_CC",
        "PRESENT": "PCI_EXP_SLTSTA_PDS",
        "LINK_CHANGED": "PCI_EXP_SLTSTA_DLLSC",
    },
    pci.MsixFlags: {
        "SIZE": "PCI_MSIX_FLAGS_QSIZE",
        "MASKALL": "PCI_MSIX_FLAGS_MASKALL",
        "ENABLE": "PCI_MSIX_FLAGS_ENABLE",
    },
    uart.InterruptEnable: {
        "RECEIVED": "UART_IER_RDI",
        "EMPTY": "UART_IER_THRI",
        "LINE": "UART_IER_RLSI",
        "MODEM": "UART_IER_MSI",
    },
    uart.FifoControl: {
        "ENABLE": "UART_FCR_ENABLE_FIFO",
        "CLEAR_RECEIVER": "UART_FCR_CLEAR_RCVR",
        "CLEAR_TRANSMITTER": "UART_FCR_CLEAR_XMIT",
        "TRIGGER": "UART_FCR_TRIGGER_MASK",
    },
    uart.LineControl: {"BREAK": "UART_LCR_SBC", "DLAB": "UART_LCR_DLAB"},
    uart.ModemControl: {
        "DTR": "UART_MCR_DTR",
        "RTS": "UART_MCR_RTS",
        "OUT1": "UART_MCR_OUT1",
        "OUT2": "UART_MCR_OUT2",
        "LOOP": "UART_MCR_LOOP",
    },
    uart.LineStatus: {
        "READY": "UART_LSR_DR",
        "OVERRUN": "UART_LSR_OE",
        "HOLDING_EMPTY": "UART_LSR_THRE",
        "EMPTY": "UART_LSR_TEMT",
    },
    uart.ModemStatus: {
        "CTS": "UART_MSR_CTS",
        "DSR": "UART_MSR_DSR",
        "RI": "UART_MSR_RI",
        "DCD": "UART_MSR_DCD",
    },
}


def _header(name: str) -> dict[str, int]:
    path = INCLUDE / name
    if not path.exists():
        pytest.skip(f"{path} is not installed (package linux-libc-dev)")
    found = {}
    for line in path.read_text().splitlines():
        match = DEFINITION.match(line.split("/*")[0].rstrip())
        if match:
            found[match[1]] = int(match[2], 0)
    return found


@pytest.mark.parametrize(
    ("module", "header", "prefix", "count"),
    [(pci, "pci_regs.h", "PCI_", 50), (uart, "serial_reg.h", "UART_", 15)],
)
def test_constants_are_the_headers(module: ModuleType, header: str, prefix: str, count: int) -> None:
    theirs = _header(header)
    ours = {name: value for name, value in vars(module).items() if name.startswith(prefix)}
    compared = ours.keys() & theirs.keys()
    assert len(compared) >= count
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}


@pytest.mark.parametrize("register", FIELDS, ids=lambda register: register.__name__)
def test_fields_are_the_headers_masks(register: type[Register]) -> None:
    theirs = _header("pci_regs.h") | _header("serial_reg.h")
    ours = {field.name: field.mask for field in register.FIELDS}
    names = FIELDS[register]
    assert {name: ours[name] for name in names} == {name: theirs[known] for name, known in names.items()}
