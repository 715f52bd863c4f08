"""The ACPI tables of a machine, hardware-reduced (ACPI 6.5, 4.1): no legacy timer, PIC or fixed registers.

`build` returns them as one block that begins with the RSDP and lies at `layout.ACPI_RSDP`. The namespace has
what a guest cannot find by asking a bus.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import sizeof
from dataclasses import dataclass

from nagaya.abi import acpi
from nagaya.errors import ResourceError
from nagaya.hw import aml, layout
from nagaya.hw.ged import EVENTS, Event

_OEM, _TABLE, _CREATOR = b"NAGAYA", b"NAGAYAVM", b"NGYA"
_APIC_IDS = 255  # ids from here on need the x2APIC's structures
_NATIVE_PCIE = 0x1D  # what the guest may drive: hot-plug, PME, AER, the capability; not SHPC
_OSC_PCI = "33db4d5b-1ff7-401c-9657-7441c03dd766"  # PCI Firmware Specification 3.3, 4.5.1
_OSC_UNKNOWN_UUID, _OSC_UNKNOWN_REVISION, _OSC_MASKED = 0x04, 0x08, 0x10


@dataclass(frozen=True, slots=True)
class AcpiConfig:
    """What the tables say of a machine."""

    cpus: int  # APIC ids 0 to cpus - 1
    pci_windows: Sequence[tuple[int, int]] = ()  # (address, size) for BARs; none: no PCI
    virtio_mmio: Sequence[tuple[int, int]] = ()  # (address, interrupt line) of each device
    serial_ports: int = 1
    ram: Sequence[tuple[int, int]] = ()  # (address, size); only said where memory can be plugged
    hot_memory: Sequence[tuple[int, int]] = ()  # (address, size) of regions in which memory is plugged


def build(config: AcpiConfig) -> bytes:
    """All tables. Raises `ResourceError` if they do not fit below `layout.VMGENID_PAGE`."""
    blob = bytearray(layout.ACPI_TABLES - layout.ACPI_RSDP)
    entries = []
    for table in _tables(config, layout.ACPI_TABLES):
        entries.append(layout.ACPI_RSDP + len(blob))
        blob += table
        blob += bytes(-len(blob) % 16)
    # The DSDT is first, and the FADT names it; the XSDT lists the others (5.2.8).
    addresses = b"".join(address.to_bytes(8, "little") for address in entries[1:])
    xsdt = layout.ACPI_RSDP + len(blob)
    blob += _table(b"XSDT", 1, acpi.TableHeader(), addresses)
    if layout.ACPI_RSDP + len(blob) > layout.VMGENID_PAGE:
        raise ResourceError(
            f"ACPI tables of {len(blob)} bytes do not fit below {layout.VMGENID_PAGE:#x}: {config.cpus} vCPUs"
            f" and {len(config.virtio_mmio)} virtio-mmio devices are too many"
        )
    rsdp = acpi.Rsdp(b"RSD PTR ", 0, _OEM, 2, 0, sizeof(acpi.Rsdp), xsdt)
    rsdp.checksum = _checksum(bytes(rsdp)[:20])
    rsdp.extended_checksum = _checksum(bytes(rsdp))
    blob[: sizeof(rsdp)] = bytes(rsdp)
    return bytes(blob)


def _tables(config: AcpiConfig, dsdt: int) -> list[bytes]:
    tables = [_dsdt(config), _fadt(dsdt), _madt(config.cpus)]
    if config.pci_windows:
        tables.append(_mcfg())
    if config.serial_ports:
        tables.append(_spcr())
    if config.hot_memory:
        tables.append(_srat(config))
    return tables


def _table(signature: bytes, revision: int, head: acpi.TableHeader | _HasHeader, body: bytes = b"") -> bytes:
    """A whole table: `head`, whose header is filled in here, and what follows it."""
    header = head if isinstance(head, acpi.TableHeader) else head.header
    header.signature, header.revision = signature, revision
    header.length = sizeof(head) + len(body)
    header.oem_id, header.oem_table_id, header.oem_revision = _OEM, _TABLE, 1
    header.creator_id, header.creator_revision = _CREATOR, 1
    header.checksum = 0
    header.checksum = _checksum(bytes(head) + body)
    return bytes(head) + body


_HasHeader = acpi.Fadt | acpi.Madt | acpi.Mcfg | acpi.Spcr | acpi.Srat


def _checksum(content: bytes) -> int:
    return -sum(content) & 0xFF


def _io_register(port: int) -> acpi.GenericAddress:
    return acpi.GenericAddress(acpi.SPACE_IO, 8, 0, acpi.ACCESS_BYTE, port)


def _fadt(dsdt: int) -> bytes:
    fadt = acpi.Fadt(
        dsdt=dsdt,
        x_dsdt=dsdt,
        iapc_boot_arch=acpi.IAPC_LEGACY_DEVICES | acpi.IAPC_NO_VGA | acpi.IAPC_NO_ASPM,
        flags=acpi.FADT_WBINVD
        | acpi.FADT_PROC_C1
        | acpi.FADT_POWER_BUTTON
        | acpi.FADT_SLEEP_BUTTON
        | acpi.FADT_RESET_REGISTER
        | acpi.FADT_HEADLESS
        | acpi.FADT_HW_REDUCED,
        reset_reg=_io_register(layout.RESET_PORT),
        reset_value=acpi.RESET_VALUE,
        minor_version=acpi.FADT_MINOR,
        sleep_control_reg=_io_register(layout.ACPI_SLEEP_PORT),
        sleep_status_reg=_io_register(layout.ACPI_SLEEP_PORT + 1),
        hypervisor_vendor=_OEM,
    )
    return _table(b"FACP", acpi.FADT_REVISION, fadt)


def _madt(cpus: int) -> bytes:
    entries: list[_MadtEntry] = []
    for cpu in range(cpus):
        if cpu < _APIC_IDS:
            entries.append(acpi.MadtLocalApic(uid=cpu, apic_id=cpu, flags=acpi.APIC_ENABLED))
        else:
            entries.append(acpi.MadtLocalX2Apic(uid=cpu, x2apic_id=cpu, flags=acpi.APIC_ENABLED))
    entries.append(acpi.MadtIoApic(address=layout.IOAPIC))
    entries.append(acpi.MadtLocalApicNmi(uid=acpi.ALL_PROCESSORS, lint=1))
    if cpus > _APIC_IDS:
        entries.append(acpi.MadtLocalX2ApicNmi(uid=acpi.ALL_X2APIC_PROCESSORS, lint=1))
    for entry in entries:
        entry.type, entry.length = entry.TYPE, sizeof(entry)
    madt = acpi.Madt(local_apic_address=layout.LAPIC)
    return _table(b"APIC", 5, madt, b"".join(map(bytes, entries)))


_MadtEntry = (
    acpi.MadtLocalApic
    | acpi.MadtLocalX2Apic
    | acpi.MadtIoApic
    | acpi.MadtLocalApicNmi
    | acpi.MadtLocalX2ApicNmi
)


def _srat(config: AcpiConfig) -> bytes:
    """One node with everything. Linux learns from it how far memory may reach (`max_possible_pfn`)."""
    entries: list[_SratEntry] = []
    for cpu in range(config.cpus):
        if cpu < _APIC_IDS:
            entries.append(acpi.SratLocalApic(apic_id=cpu, flags=acpi.SRAT_ENABLED))
        else:
            entries.append(acpi.SratLocalX2Apic(x2apic_id=cpu, flags=acpi.SRAT_ENABLED))
    entries += [acpi.SratMemory(base=base, size=size, flags=acpi.SRAT_ENABLED) for base, size in config.ram]
    hot = acpi.SRAT_ENABLED | acpi.SRAT_HOT_PLUGGABLE
    entries += [acpi.SratMemory(base=base, size=size, flags=hot) for base, size in config.hot_memory]
    for entry in entries:
        entry.type, entry.length = entry.TYPE, sizeof(entry)
    return _table(b"SRAT", 3, acpi.Srat(reserved1=1), b"".join(map(bytes, entries)))


_SratEntry = acpi.SratLocalApic | acpi.SratLocalX2Apic | acpi.SratMemory


def _mcfg() -> bytes:
    return _table(b"MCFG", 1, acpi.Mcfg(base_address=layout.ECAM, end_bus=_last_bus()))


def _last_bus() -> int:
    return layout.ECAM_SIZE // layout.MIB - 1


def _spcr() -> bytes:
    spcr = acpi.Spcr(
        interface_type=acpi.SPCR_16550,
        base_address=_io_register(layout.SERIAL_PORTS[0]),
        interrupt_type=acpi.SPCR_IO_APIC,
        irq=layout.SERIAL_IRQS[0],
        gsi=layout.SERIAL_IRQS[0],
        baud_rate=acpi.SPCR_115200,
        stop_bits=1,
        terminal_type=acpi.SPCR_ANSI,
        pci_device_id=acpi.SPCR_NOT_PCI,
        pci_vendor_id=acpi.SPCR_NOT_PCI,
    )
    return _table(b"SPCR", 2, spcr)


def _dsdt(config: AcpiConfig) -> bytes:
    """The namespace. Names with four letters are ours, those with an underscore in front the standard's."""
    system = [
        *_processors(config.cpus),
        *_board_devices(config.serial_ports),
        *_event_device(),
        _generation(),
    ]
    if config.pci_windows:
        system += [_host_bridge(config.pci_windows), _motherboard()]
    system += [_virtio_mmio(*place, number) for number, place in enumerate(config.virtio_mmio)]
    sleep = aml.package(*(aml.integer(value) for value in (acpi.SLEEP_TYPE_S5, 0, 0, 0)))
    return _table(b"DSDT", 2, acpi.TableHeader(), aml.name("\\_S5", sleep) + aml.scope("\\_SB", *system))


def _processors(cpus: int) -> list[bytes]:
    """Processor devices (8.4); the MADT has the same unique ids."""
    return [
        aml.device(
            f"C{cpu:03X}",
            aml.name("_HID", aml.string("ACPI0007")),
            aml.name("_UID", aml.integer(cpu)),
        )
        for cpu in range(cpus)
    ]


def _board_devices(serial_ports: int) -> list[bytes]:
    ports = zip(layout.SERIAL_PORTS[:serial_ports], layout.SERIAL_IRQS, strict=False)
    return [
        aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", aml.resources(aml.io(layout.RTC_PORT, 2))),
        ),
        aml.device(
            "PEVT",  # pvpanic, by the name that Linux' driver knows
            aml.name("_HID", aml.string("QEMU0001")),
            aml.name("_CRS", aml.resources(aml.io(layout.PVPANIC_PORT, 1))),
        ),
        *(
            aml.device(
                f"COM{number + 1}",
                aml.name("_HID", aml.eisa_id("PNP0501")),
                aml.name("_UID", aml.integer(number)),
                aml.name("_CRS", aml.resources(aml.io(port, 8), aml.irq(line))),
            )
            for number, (port, line) in enumerate(ports)
        ),
    ]


def _event_device() -> list[bytes]:
    """The power button, and the Generic Event Device that presses it (5.6.9)."""
    pending = aml.local(0)
    return [
        aml.device("PWRB", aml.name("_HID", aml.eisa_id("PNP0C0C"))),
        aml.device(
            "GED",
            aml.name("_HID", aml.string("ACPI0013")),
            aml.name("_CRS", aml.resources(aml.interrupt(layout.GED_IRQ))),
            aml.memory_region("EVTR", layout.GED, 4),
            aml.dword_fields("EVTR", "EVTS"),
            aml.method(
                "_EVT",
                1,
                aml.store(aml.path("EVTS"), pending),
                _on(pending, Event.POWER_BUTTON, "\\_SB.PWRB"),
                _on(pending, Event.GENERATION, "\\_SB.VGEN"),
                serialized=True,
            ),
        ),
    ]


def _on(pending: bytes, event: Event, target: str) -> bytes:
    return aml.if_(aml.and_(pending, aml.integer(event)), aml.notify(target, EVENTS[event]))


def _generation() -> bytes:
    """Virtual Machine Generation ID (Microsoft, 2012): where the 16 bytes are."""
    address = (layout.VMGENID_PAGE & 0xFFFFFFFF, layout.VMGENID_PAGE >> 32)
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("NGYA0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(*map(aml.integer, address))),
    )


def _host_bridge(windows: Sequence[tuple[int, int]]) -> bytes:
    """PCI Express (6.2.11, PCI Firmware 3.3, 4). No _PRT: there are only message-signalled interrupts."""
    config = layout.PCI_CONFIG_PORT
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", aml.ZERO),
        aml.name("_SEG", aml.ZERO),
        aml.name("_BBN", aml.ZERO),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, _last_bus()),
                aml.io(config, 8),
                aml.io_window(0, config - 1),
                aml.io_window(config + 8, 0xFFFF),
                *(aml.memory_window(base, base + size - 1) for base, size in windows),
            ),
        ),
        _osc(),
    )


def _osc() -> bytes:
    """_OSC: without it Linux leaves hot-plug and the rest of PCI Express to firmware, which is not there."""
    capabilities, wanted, control = aml.path("CDW1"), aml.path("CDW3"), aml.local(0)

    def fault(bit: int) -> bytes:
        return aml.or_(capabilities, aml.integer(bit), capabilities)

    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.arg(3), 0, "CDW1"),
        aml.if_(
            aml.equal(aml.arg(0), aml.to_uuid(_OSC_PCI)),
            aml.create_dword_field(aml.arg(3), 8, "CDW3"),
            aml.and_(wanted, aml.integer(_NATIVE_PCIE), control),
            aml.if_(aml.not_equal(aml.arg(1), aml.ONE), fault(_OSC_UNKNOWN_REVISION)),
            aml.if_(aml.not_equal(wanted, control), fault(_OSC_MASKED)),
            aml.store(control, wanted),
        ),
        aml.else_(fault(_OSC_UNKNOWN_UUID)),
        aml.return_(aml.arg(3)),
        serialized=True,
    )


def _motherboard() -> bytes:
    """The ECAM area as taken, without which Linux does not use it (PCI Firmware 3.3, 4.1.2)."""
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_CRS", aml.resources(aml.memory32(layout.ECAM, layout.ECAM_SIZE))),
    )


def _virtio_mmio(address: int, line: int, number: int) -> bytes:
    """A virtio-mmio device, by the name that Linux' driver knows."""
    resources = aml.resources(
        aml.memory32(address, layout.VIRTIO_MMIO_STRIDE), aml.interrupt(line, edge=True)
    )
    return aml.device(
        f"V{number:03X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CCA", aml.ONE),
        aml.name("_CRS", resources),
    )
