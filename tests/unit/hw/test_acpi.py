"""The tables as a guest reads them, and as ACPI's own compiler does."""

from __future__ import annotations

import subprocess
from ctypes import sizeof
from pathlib import Path

import pytest

from nagaya.abi import acpi as abi
from nagaya.errors import ResourceError
from nagaya.hw import layout
from nagaya.hw.acpi import AcpiConfig, build

WINDOWS = ((layout.PCI_MMIO32, layout.PCI_MMIO32_SIZE), (1 << 40, layout.GIB))
LARGE = AcpiConfig(
    300,
    WINDOWS,
    [(layout.VIRTIO_MMIO, 5)],
    serial_ports=2,
    ram=layout.ram_ranges(5 * layout.GIB),
    hot_memory=[(layout.hot_start(5 * layout.GIB), layout.GIB)],
)
SMALL = AcpiConfig(1, serial_ports=0)


def at(blob: bytes, address: int, size: int) -> bytes:
    return blob[address - layout.ACPI_RSDP :][:size]


def tables(blob: bytes) -> dict[bytes, bytes]:
    """What a guest finds that begins with the RSDP."""
    rsdp = abi.Rsdp.from_buffer_copy(blob)
    assert (rsdp.signature, rsdp.revision, rsdp.length) == (b"RSD PTR ", 2, sizeof(abi.Rsdp))
    assert sum(blob[:20]) % 256 == sum(blob[: rsdp.length]) % 256 == 0
    xsdt = whole(blob, rsdp.xsdt_address)
    found = {b"XSDT": xsdt}
    for start in range(sizeof(abi.TableHeader), len(xsdt), 8):
        table = whole(blob, int.from_bytes(xsdt[start : start + 8], "little"))
        found[table[:4]] = table
    fadt = abi.Fadt.from_buffer_copy(found[b"FACP"])
    assert fadt.dsdt == fadt.x_dsdt
    found[b"DSDT"] = whole(blob, fadt.x_dsdt)
    return found


def whole(blob: bytes, address: int) -> bytes:
    header = abi.TableHeader.from_buffer_copy(at(blob, address, sizeof(abi.TableHeader)))
    table = at(blob, address, header.length)
    assert len(table) == header.length
    assert sum(table) % 256 == 0
    return table


def test_a_guest_finds_what_the_machine_has() -> None:
    assert set(tables(build(LARGE))) == {b"XSDT", b"FACP", b"DSDT", b"APIC", b"MCFG", b"SPCR", b"SRAT"}
    assert set(tables(build(SMALL))) == {b"XSDT", b"FACP", b"DSDT", b"APIC"}


def test_memory_that_can_be_plugged_is_announced_beside_all_that_is_there() -> None:
    table = tables(build(LARGE))[b"SRAT"]
    entries, at = [], sizeof(abi.Srat)
    while at < len(table):
        entries.append(table[at : at + table[at + 1]])
        at += table[at + 1]
    memory = [abi.SratMemory.from_buffer_copy(one) for one in entries if one[0] == abi.SratMemory.TYPE]
    assert [(one.base, one.size, one.flags) for one in memory] == [
        (0, layout.LOW_RAM_END, abi.SRAT_ENABLED),
        (layout.HIGH_RAM, 2 * layout.GIB, abi.SRAT_ENABLED),
        (6 * layout.GIB, layout.GIB, abi.SRAT_ENABLED | abi.SRAT_HOT_PLUGGABLE),
    ]
    assert len(entries) == len(memory) + LARGE.cpus


@pytest.mark.parametrize("config", [LARGE, SMALL], ids=["large", "small"])
def test_acpis_own_compiler_takes_each_table(config: AcpiConfig, tmp_path: Path) -> None:
    for signature, table in tables(build(config)).items():
        name = tmp_path / signature.decode().lower()
        name.with_suffix(".dat").write_bytes(table)
        for arguments in (["-d", name.with_suffix(".dat")], [name.with_suffix(".dsl")]):
            done = subprocess.run(
                ["iasl", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            output = done.stdout + done.stderr
            assert done.returncode == 0, output
            assert "Warning" not in output.replace("0 Warnings", ""), output
            assert "Error" not in output.replace("0 Errors", ""), output
        if signature != b"DSDT":  # whose paths the compiler shortens; the header names the compiler
            head = sizeof(abi.TableHeader)
            assert name.with_suffix(".aml").read_bytes()[head:] == table[head:]


def test_power_off_and_reset_are_where_the_layout_says() -> None:
    fadt = abi.Fadt.from_buffer_copy(tables(build(SMALL))[b"FACP"])
    assert fadt.flags & abi.FADT_HW_REDUCED
    registers = (fadt.sleep_control_reg, fadt.sleep_status_reg, fadt.reset_reg)
    assert [(one.space_id, one.address, one.bit_width) for one in registers] == [
        (abi.SPACE_IO, layout.ACPI_SLEEP_PORT, 8),
        (abi.SPACE_IO, layout.ACPI_SLEEP_PORT + 1, 8),
        (abi.SPACE_IO, layout.RESET_PORT, 8),
    ]
    assert fadt.reset_value == 6


def test_the_madt_has_each_processor_once_and_the_io_apic() -> None:
    table = tables(build(LARGE))[b"APIC"]
    assert abi.Madt.from_buffer_copy(table).local_apic_address == layout.LAPIC
    entries = []
    rest = table[sizeof(abi.Madt) :]
    while rest:
        entries.append(rest[: rest[1]])
        rest = rest[rest[1] :]
    kinds = {kind.TYPE: kind for kind in (abi.MadtLocalApic, abi.MadtLocalX2Apic, abi.MadtIoApic)}
    assert {entry[0] for entry in entries} == {0, 1, 4, 9, 10}
    apics = [kinds[entry[0]].from_buffer_copy(entry) for entry in entries if entry[0] in kinds]
    ids = [getattr(apic, "x2apic_id", getattr(apic, "apic_id", None)) for apic in apics[:300]]
    assert ids == list(range(300)) == [apic.uid for apic in apics[:300]]
    assert [type(apic) for apic in apics[254:256]] == [abi.MadtLocalApic, abi.MadtLocalX2Apic]
    assert apics[300].address == layout.IOAPIC


def test_configuration_space_is_where_the_mcfg_says() -> None:
    mcfg = abi.Mcfg.from_buffer_copy(tables(build(LARGE))[b"MCFG"])
    assert (mcfg.base_address, mcfg.start_bus, mcfg.end_bus) == (layout.ECAM, 0, 255)


def test_the_console_is_where_the_spcr_says() -> None:
    spcr = abi.Spcr.from_buffer_copy(tables(build(LARGE))[b"SPCR"])
    assert (spcr.base_address.space_id, spcr.base_address.address) == (1, layout.SERIAL_PORTS[0])
    assert spcr.gsi == layout.SERIAL_IRQS[0]


def test_more_than_fits_is_refused() -> None:
    with pytest.raises(ResourceError, match="4000 vCPUs"):
        build(AcpiConfig(4000))
