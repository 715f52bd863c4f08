"""PCI configuration space: where registers are and what their bits say (linux/pci_regs.h has the same names).

PCI Local Bus 3.0, chapter 6; PCI-to-PCI Bridge 1.2, chapter 3; PCI Express Base 3.0, chapter 7.
"""

from __future__ import annotations

from nagaya.abi.registers import Bits, Register, bit

CONFIG_SIZE = (
    4096  # bytes of one function's space; the first 256 are within reach of the ports 0xcf8 and 0xcfc
)
HEADER_SIZE = 64

# The header that all functions have
PCI_VENDOR_ID = 0x00
PCI_DEVICE_ID = 0x02
PCI_COMMAND = 0x04
PCI_STATUS = 0x06
PCI_REVISION_ID = 0x08
PCI_CLASS_PROG = 0x09
PCI_CLASS_DEVICE = 0x0A
PCI_CACHE_LINE_SIZE = 0x0C
PCI_LATENCY_TIMER = 0x0D
PCI_HEADER_TYPE = 0x0E
PCI_BASE_ADDRESS_0 = 0x10
PCI_CAPABILITY_LIST = 0x34
PCI_INTERRUPT_LINE = 0x3C
PCI_INTERRUPT_PIN = 0x3D

# Type 0: an endpoint
PCI_SUBSYSTEM_VENDOR_ID = 0x2C
PCI_SUBSYSTEM_ID = 0x2E

# Type 1: a bridge
PCI_PRIMARY_BUS = 0x18
PCI_SECONDARY_BUS = 0x19
PCI_SUBORDINATE_BUS = 0x1A
PCI_SEC_STATUS = 0x1E
PCI_MEMORY_BASE = 0x20
PCI_MEMORY_LIMIT = 0x22
PCI_PREF_MEMORY_BASE = 0x24
PCI_PREF_MEMORY_LIMIT = 0x26
PCI_PREF_BASE_UPPER32 = 0x28
PCI_PREF_LIMIT_UPPER32 = 0x2C
PCI_BRIDGE_CONTROL = 0x3E

PCI_HEADER_TYPE_NORMAL = 0
PCI_HEADER_TYPE_BRIDGE = 1

# Low bits of a base address register
PCI_BASE_ADDRESS_MEM_TYPE_64 = 0x04
PCI_BASE_ADDRESS_MEM_PREFETCH = 0x08

# Capabilities
PCI_CAP_ID_VNDR = 0x09
PCI_CAP_ID_EXP = 0x10
PCI_CAP_ID_MSIX = 0x11

# Offsets in the PCI Express capability (version 2)
PCI_EXP_FLAGS = 0x02
PCI_EXP_DEVCAP = 0x04
PCI_EXP_DEVCTL = 0x08
PCI_EXP_DEVSTA = 0x0A
PCI_EXP_LNKCAP = 0x0C
PCI_EXP_LNKCTL = 0x10
PCI_EXP_LNKSTA = 0x12
PCI_EXP_SLTCAP = 0x14
PCI_EXP_SLTCTL = 0x18
PCI_EXP_SLTSTA = 0x1A
PCI_EXP_RTCTL = 0x1C
PCI_EXP_RTSTA = 0x20
PCI_EXP_LNKCTL2 = 0x30
EXPRESS_SIZE = 60

PCI_EXP_TYPE_ENDPOINT = 0x0
PCI_EXP_TYPE_ROOT_PORT = 0x4
PCI_EXP_TYPE_RC_END = 0x9

# Offsets in the MSI-X capability, and in an entry of its table
PCI_MSIX_FLAGS = 0x02
PCI_MSIX_TABLE = 0x04
PCI_MSIX_PBA = 0x08
MSIX_SIZE = 12
PCI_MSIX_ENTRY_SIZE = 16
PCI_MSIX_ENTRY_LOWER_ADDR = 0x0
PCI_MSIX_ENTRY_UPPER_ADDR = 0x4
PCI_MSIX_ENTRY_DATA = 0x8
PCI_MSIX_ENTRY_VECTOR_CTRL = 0xC
PCI_MSIX_ENTRY_CTRL_MASKBIT = 0x1
MSIX_VECTORS_MAX = 2048  # what the table's size field holds

# Class codes: base class and subclass
PCI_CLASS_STORAGE_SCSI = 0x0100
PCI_CLASS_STORAGE_OTHER = 0x0180
PCI_CLASS_NETWORK_ETHERNET = 0x0200
PCI_CLASS_BRIDGE_HOST = 0x0600
PCI_CLASS_BRIDGE_PCI = 0x0604
PCI_CLASS_COMMUNICATION_OTHER = 0x0780
PCI_CLASS_OTHERS = 0xFF


class Command(Register):
    """PCI_COMMAND: what a function may do (PCI 3.0, 6.2.2)."""

    IO = bit(0)
    MEMORY = bit(1)
    BUS_MASTER = bit(2)
    PARITY = bit(6)
    SERR = bit(8)
    INTX_DISABLE = bit(10)


class Status(Register):
    """PCI_STATUS (PCI 3.0, 6.2.3)."""

    INTERRUPT = bit(3)
    CAPABILITIES = bit(4)


class BridgeControl(Register):
    """PCI_BRIDGE_CONTROL (Bridge 1.2, 3.2.5.18)."""

    PARITY = bit(0)
    SERR = bit(1)
    BUS_RESET = bit(6)


class ExpressFlags(Register):
    """PCI_EXP_FLAGS: PCI Express capabilities (PCIe 3.0, 7.8.2)."""

    VERSION = Bits(0, 3)
    TYPE = Bits(4, 7)
    SLOT = bit(8)
    MESSAGE = Bits(9, 13)


class DeviceCapabilities(Register):
    """PCI_EXP_DEVCAP (PCIe 3.0, 7.8.3)."""

    PAYLOAD = Bits(0, 2)
    EXTENDED_TAG = bit(5)
    ROLE_BASED_ERRORS = bit(15)


class DeviceControl(Register):
    """PCI_EXP_DEVCTL (PCIe 3.0, 7.8.4)."""

    ERRORS = Bits(0, 3)
    RELAXED_ORDERING = bit(4)
    PAYLOAD = Bits(5, 7)
    EXTENDED_TAG = bit(8)
    NO_SNOOP = bit(11)
    READ_REQUEST = Bits(12, 14)


class LinkCapabilities(Register):
    """PCI_EXP_LNKCAP (PCIe 3.0, 7.8.6)."""

    SPEED = Bits(0, 3)
    WIDTH = Bits(4, 9)
    ACTIVE_REPORTING = bit(20)
    PORT = Bits(24, 31)


class LinkControl(Register):
    """PCI_EXP_LNKCTL (PCIe 3.0, 7.8.7)."""

    ASPM = Bits(0, 1)
    DISABLE = bit(4)
    RETRAIN = bit(5)
    COMMON_CLOCK = bit(6)


class LinkStatus(Register):
    """PCI_EXP_LNKSTA (PCIe 3.0, 7.8.8)."""

    SPEED = Bits(0, 3)
    WIDTH = Bits(4, 9)
    ACTIVE = bit(13)


class SlotCapabilities(Register):
    """PCI_EXP_SLTCAP (PCIe 3.0, 7.8.9)."""

    ATTENTION_BUTTON = bit(0)
    POWER_CONTROLLER = bit(1)
    ATTENTION_INDICATOR = bit(3)
    POWER_INDICATOR = bit(4)
    SURPRISE = bit(5)
    HOT_PLUG = bit(6)
    NO_COMMAND_COMPLETED = bit(18)
    NUMBER = Bits(19, 31)


class SlotControl(Register):
    """PCI_EXP_SLTCTL (PCIe 3.0, 7.8.10). Indicators: 1 on, 2 blinking, 3 off; POWER_OFF: 1 is off."""

    BUTTON_ENABLE = bit(0)
    PRESENCE_ENABLE = bit(3)
    COMMAND_ENABLE = bit(4)
    INTERRUPT_ENABLE = bit(5)
    ATTENTION = Bits(6, 7)
    POWER = Bits(8, 9)
    POWER_OFF = bit(10)
    LINK_ENABLE = bit(12)


class SlotStatus(Register):
    """PCI_EXP_SLTSTA (PCIe 3.0, 7.8.11)."""

    BUTTON = bit(0)
    PRESENCE_CHANGED = bit(3)
    COMMAND_COMPLETED = bit(4)
    PRESENT = bit(6)
    LINK_CHANGED = bit(8)


class MsixFlags(Register):
    """PCI_MSIX_FLAGS: message control of MSI-X (PCI 3.0, 6.8.2.3). SIZE is the number of vectors less one."""

    SIZE = Bits(0, 10)
    MASKALL = bit(14)
    ENABLE = bit(15)


class ConfigAddress(Register):
    """Port 0xcf8: what port 0xcfc reaches (PCI 3.0, 3.2.2.3.2)."""

    OFFSET = Bits(2, 7)
    FUNCTION = Bits(8, 10)
    DEVICE = Bits(11, 15)
    BUS = Bits(16, 23)
    ENABLE = bit(31)
