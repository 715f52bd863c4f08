"""ACPI tables as they lie in memory, and the opcodes of AML that Nagaya writes. Only declarations.

ACPI Specification 6.5: tables in chapter 5, AML in chapter 20, resource descriptors in 6.4. SPCR: Microsoft's
Serial Port Console Redirection Table, revision 2. MCFG: PCI Firmware Specification 3.3, 4.1.2.
"""

from __future__ import annotations

import ctypes

_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class _Packed(ctypes.LittleEndianStructure):
    _pack_ = 1


class Rsdp(_Packed):
    """Root System Description Pointer (5.2.5.3)."""

    _fields_ = (
        ("signature", ctypes.c_char * 8),
        ("checksum", _u8),  # of the first 20 bytes
        ("oem_id", ctypes.c_char * 6),
        ("revision", _u8),
        ("rsdt_address", _u32),
        ("length", _u32),
        ("xsdt_address", _u64),
        ("extended_checksum", _u8),  # of all
        ("reserved", _u8 * 3),
    )


class TableHeader(_Packed):
    """What every table begins with (5.2.6)."""

    _fields_ = (
        ("signature", ctypes.c_char * 4),
        ("length", _u32),
        ("revision", _u8),
        ("checksum", _u8),
        ("oem_id", ctypes.c_char * 6),
        ("oem_table_id", ctypes.c_char * 8),
        ("oem_revision", _u32),
        ("creator_id", ctypes.c_char * 4),
        ("creator_revision", _u32),
    )


SPACE_MEMORY = 0
SPACE_IO = 1
ACCESS_BYTE = 1


class GenericAddress(_Packed):
    """Generic Address Structure (5.2.3.2)."""

    _fields_ = (
        ("space_id", _u8),
        ("bit_width", _u8),
        ("bit_offset", _u8),
        ("access_size", _u8),
        ("address", _u64),
    )


FADT_REVISION, FADT_MINOR = 6, 5
FADT_WBINVD = 1 << 0
FADT_PROC_C1 = 1 << 2
FADT_POWER_BUTTON = 1 << 4  # the power button is a device, or none
FADT_SLEEP_BUTTON = 1 << 5  # likewise
FADT_RESET_REGISTER = 1 << 10
FADT_HEADLESS = 1 << 12
FADT_HW_REDUCED = 1 << 20
IAPC_LEGACY_DEVICES = 1 << 0
IAPC_NO_VGA = 1 << 2
IAPC_NO_ASPM = 1 << 4
SLEEP_TYPE_S5 = 5  # what this machine calls power-off
SLEEP_TYPE_SHIFT = 2  # in the sleep control register (4.8.3.7)
SLEEP_ENABLE = 1 << 5
RESET_VALUE = 6  # system reset, as PCs do at port 0xcf9


class Fadt(_Packed):
    """Fixed ACPI Description Table (5.2.9); with HW_REDUCED, what is left out of the names is ignored."""

    _fields_ = (
        ("header", TableHeader),
        ("firmware_ctrl", _u32),
        ("dsdt", _u32),
        ("reserved1", _u8),
        ("preferred_pm_profile", _u8),
        ("_fixed_hardware1", _u8 * 63),
        ("iapc_boot_arch", _u16),
        ("reserved2", _u8),
        ("flags", _u32),
        ("reset_reg", GenericAddress),
        ("reset_value", _u8),
        ("arm_boot_arch", _u16),
        ("minor_version", _u8),
        ("x_firmware_ctrl", _u64),
        ("x_dsdt", _u64),
        ("_fixed_hardware2", GenericAddress * 8),
        ("sleep_control_reg", GenericAddress),
        ("sleep_status_reg", GenericAddress),
        ("hypervisor_vendor", ctypes.c_char * 8),
    )


class Madt(_Packed):
    """Multiple APIC Description Table (5.2.12), before its entries."""

    _fields_ = (("header", TableHeader), ("local_apic_address", _u32), ("flags", _u32))


APIC_ENABLED = 1 << 0
ALL_PROCESSORS = 0xFF
ALL_X2APIC_PROCESSORS = 0xFFFFFFFF


class MadtLocalApic(_Packed):
    """Processor Local APIC, type 0 (5.2.12.2): APIC ids up to 254."""

    TYPE = 0
    _fields_ = (("type", _u8), ("length", _u8), ("uid", _u8), ("apic_id", _u8), ("flags", _u32))


class MadtIoApic(_Packed):
    """I/O APIC, type 1 (5.2.12.3)."""

    TYPE = 1
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("id", _u8),
        ("reserved", _u8),
        ("address", _u32),
        ("gsi_base", _u32),
    )


class MadtLocalApicNmi(_Packed):
    """Local APIC NMI, type 4 (5.2.12.7)."""

    TYPE = 4
    _fields_ = (("type", _u8), ("length", _u8), ("uid", _u8), ("flags", _u16), ("lint", _u8))


class MadtLocalX2Apic(_Packed):
    """Processor Local x2APIC, type 9 (5.2.12.12)."""

    TYPE = 9
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("reserved", _u16),
        ("x2apic_id", _u32),
        ("flags", _u32),
        ("uid", _u32),
    )


class MadtLocalX2ApicNmi(_Packed):
    """Local x2APIC NMI, type 10 (5.2.12.13)."""

    TYPE = 10
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("flags", _u16),
        ("uid", _u32),
        ("lint", _u8),
        ("reserved", _u8 * 3),
    )


class Srat(_Packed):
    """System Resource Affinity Table (5.2.16), before its entries."""

    _fields_ = (("header", TableHeader), ("reserved1", _u32), ("reserved2", _u64))


SRAT_ENABLED = 1 << 0
SRAT_HOT_PLUGGABLE = 1 << 1


class SratLocalApic(_Packed):
    """Processor Local APIC affinity, type 0 (5.2.16.1): APIC ids up to 254."""

    TYPE = 0
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("node_low", _u8),
        ("apic_id", _u8),
        ("flags", _u32),
        ("sapic_eid", _u8),
        ("node_high", _u8 * 3),
        ("clock_domain", _u32),
    )


class SratMemory(_Packed):
    """Memory affinity, type 1 (5.2.16.2)."""

    TYPE = 1
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("node", _u32),
        ("reserved1", _u16),
        ("base", _u64),
        ("size", _u64),
        ("reserved2", _u32),
        ("flags", _u32),
        ("reserved3", _u64),
    )


class SratLocalX2Apic(_Packed):
    """Processor Local x2APIC affinity, type 2 (5.2.16.3)."""

    TYPE = 2
    _fields_ = (
        ("type", _u8),
        ("length", _u8),
        ("reserved1", _u16),
        ("node", _u32),
        ("x2apic_id", _u32),
        ("flags", _u32),
        ("clock_domain", _u32),
        ("reserved2", _u32),
    )


class Mcfg(_Packed):
    """Memory-mapped configuration space, with its one segment group."""

    _fields_ = (
        ("header", TableHeader),
        ("reserved", _u64),
        ("base_address", _u64),
        ("segment", _u16),
        ("start_bus", _u8),
        ("end_bus", _u8),
        ("reserved2", _u32),
    )


SPCR_16550 = 0
SPCR_IO_APIC = 1 << 1
SPCR_115200 = 7
SPCR_ANSI = 3
SPCR_NOT_PCI = 0xFFFF


class Spcr(_Packed):
    """Serial Port Console Redirection Table."""

    _fields_ = (
        ("header", TableHeader),
        ("interface_type", _u8),
        ("reserved1", _u8 * 3),
        ("base_address", GenericAddress),
        ("interrupt_type", _u8),
        ("irq", _u8),
        ("gsi", _u32),
        ("baud_rate", _u8),
        ("parity", _u8),
        ("stop_bits", _u8),
        ("flow_control", _u8),
        ("terminal_type", _u8),
        ("language", _u8),
        ("pci_device_id", _u16),
        ("pci_vendor_id", _u16),
        ("pci_bus", _u8),
        ("pci_device", _u8),
        ("pci_function", _u8),
        ("pci_flags", _u32),
        ("pci_segment", _u8),
        ("reserved2", _u32),
    )


# AML opcodes (20.3)
ZERO_OP = b"\x00"
ONE_OP = b"\x01"
NAME_OP = b"\x08"
BYTE_PREFIX = b"\x0a"
WORD_PREFIX = b"\x0b"
DWORD_PREFIX = b"\x0c"
STRING_PREFIX = b"\x0d"
QWORD_PREFIX = b"\x0e"
SCOPE_OP = b"\x10"
BUFFER_OP = b"\x11"
PACKAGE_OP = b"\x12"
METHOD_OP = b"\x14"
DUAL_NAME_PREFIX = b"\x2e"
MULTI_NAME_PREFIX = b"\x2f"
LOCAL0_OP = 0x60
ARG0_OP = 0x68
STORE_OP = b"\x70"
AND_OP = b"\x7b"
OR_OP = b"\x7d"
NOTIFY_OP = b"\x86"
CREATE_DWORD_FIELD_OP = b"\x8a"
LNOT_OP = b"\x92"
LEQUAL_OP = b"\x93"
IF_OP = b"\xa0"
ELSE_OP = b"\xa1"
RETURN_OP = b"\xa4"
OP_REGION_OP = b"\x5b\x80"
FIELD_OP = b"\x5b\x81"
DEVICE_OP = b"\x5b\x82"
FIELD_DWORD_ACCESS = 0x03  # DWordAcc, NoLock, Preserve (20.2.5.2)

# Resource descriptors (6.4)
IRQ_TAG = 0x22  # small, without flags: edge, active high, exclusive
IO_TAG = 0x47
END_TAG = b"\x79\x00"
MEMORY32_FIXED_TAG = 0x86
DWORD_SPACE_TAG = 0x87
WORD_SPACE_TAG = 0x88
INTERRUPT_TAG = 0x89
QWORD_SPACE_TAG = 0x8A
SPACE_TYPE_MEMORY, SPACE_TYPE_IO, SPACE_TYPE_BUS = 0, 1, 2
SPACE_FIXED = 0x0C  # minimum and maximum are fixed; the device hands the range down
MEMORY_READ_WRITE = 0x01  # not cacheable
IO_ENTIRE_RANGE = 0x03
INTERRUPT_CONSUMER = 1 << 0
INTERRUPT_EDGE = 1 << 1
