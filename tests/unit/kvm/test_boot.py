"""What a kernel finds in memory and in its registers."""

from __future__ import annotations

import os
from contextlib import suppress
from ctypes import sizeof
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.abi import boot, kvm
from nagaya.errors import NagayaError, NotFoundError, SpecError
from nagaya.hw import layout
from nagaya.kvm.boot import BootState, apply, load
from nagaya.kvm.bootinfo import memory_map
from nagaya.kvm.kernelfile import Protocol
from nagaya.testing.kernels import CODE, FakeRam, bzimage, config, elf64, multiboot_flat, pvh_note

MEMORY = 32 * layout.MIB


class Vcpu:
    """Registers and no processor."""

    def __init__(self) -> None:
        self.sregs = kvm.Sregs(apic_base=0xFEE00900)
        self.regs = kvm.Regs()

    def get_sregs(self) -> kvm.Sregs:
        return self.sregs

    def set_sregs(self, sregs: kvm.Sregs) -> None:
        self.sregs = sregs

    def set_regs(self, regs: kvm.Regs) -> None:
        self.regs = regs


@pytest.fixture
def ram() -> FakeRam:
    return FakeRam(MEMORY)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def started(state: BootState) -> Vcpu:
    vcpu = Vcpu()
    apply(state, vcpu)
    return vcpu


def test_a_linux_kernel_gets_its_zero_page(ram: FakeRam, tmp_path: Path) -> None:
    kernel = write(tmp_path / "k", elf64())
    initrd = write(tmp_path / "i", b"initrd" * 1000)
    state = load(ram, config(kernel, initrd=str(initrd), cmdline="console=ttyS0"), tables=b"RSD PTR ")
    assert ram.read(layout.KERNEL, len(CODE) + 1) == CODE + b"\0"
    page = boot.BootParams.from_buffer_copy(ram.read(state.info, sizeof(boot.BootParams)))
    assert (page.hdr.boot_flag, page.hdr.header) == (boot.BOOT_FLAG, boot.HEADER_MAGIC)
    assert page.hdr.type_of_loader == boot.LOADER_UNDEFINED
    assert ram.read(page.hdr.cmd_line_ptr, 14) == b"console=ttyS0\0"
    assert page.hdr.ramdisk_size == 6000
    assert ram.read(page.hdr.ramdisk_image, 6000) == b"initrd" * 1000
    assert page.hdr.ramdisk_image == MEMORY - 8192
    assert ram.read(page.acpi_rsdp_addr, 8) == b"RSD PTR "
    entries = [(one.addr, one.size, one.type) for one in page.e820_table[: page.e820_entries]]
    assert entries == [(one.address, one.size, one.kind) for one in memory_map(MEMORY)]


def test_without_tables_there_is_no_acpi(ram: FakeRam, tmp_path: Path) -> None:
    state = load(ram, config(write(tmp_path / "k", elf64())))
    page = boot.BootParams.from_buffer_copy(ram.read(state.info, sizeof(boot.BootParams)))
    assert page.acpi_rsdp_addr == 0
    assert ram.read(layout.ACPI_RSDP, 8) == bytes(8)


def test_a_linux_kernel_begins_in_long_mode_with_memory_as_it_is(ram: FakeRam, tmp_path: Path) -> None:
    state = load(ram, config(write(tmp_path / "k", elf64(entry=layout.KERNEL + 16))))
    vcpu = started(state)
    assert (vcpu.regs.rip, vcpu.regs.rsi, vcpu.regs.rflags) == (layout.KERNEL + 16, layout.ZERO_PAGE, 2)
    assert (vcpu.sregs.cs.selector, vcpu.sregs.cs.l, vcpu.sregs.cs.db) == (0x10, 1, 0)
    assert {getattr(vcpu.sregs, name).selector for name in ("ds", "es", "ss")} == {0x18}
    assert (vcpu.sregs.cr0, vcpu.sregs.cr4, vcpu.sregs.efer) == (0x80000011, 0x20, 0x500)
    assert vcpu.sregs.apic_base == 0xFEE00900
    for address in (0, layout.KERNEL + 5, layout.GIB - 1):
        assert walk(ram, vcpu.sregs.cr3, address) == address
    assert walk(ram, vcpu.sregs.cr3, layout.GIB) is None


def walk(ram: FakeRam, cr3: int, address: int) -> int | None:
    """What four-level paging makes of `address` (SDM 3A, 4.5)."""
    table = cr3
    for shift in (39, 30, 21, 12):
        entry = int.from_bytes(ram.read(table + 8 * (address >> shift & 511), 8), "little")
        if not entry & 1:
            return None
        table = entry & 0xFFFFFFFFFF000
        if entry & 0x80 or shift == 12:
            return table + (address & (1 << shift) - 1)
    return None


def test_the_descriptors_in_memory_are_those_in_the_registers(ram: FakeRam, tmp_path: Path) -> None:
    vcpu = started(load(ram, config(write(tmp_path / "k", elf64()))))
    for name in ("cs", "ds", "tr"):
        register = getattr(vcpu.sregs, name)
        raw = int.from_bytes(ram.read(vcpu.sregs.gdt.base + register.selector, 8), "little")
        assert (raw >> 40 & 15, raw >> 47 & 1, raw >> 53 & 1, raw >> 54 & 1) == (
            register.type,
            register.present,
            register.l,
            register.db,
        )
    assert vcpu.sregs.gdt.limit == 31


def test_a_bzimage_keeps_its_header(ram: FakeRam, tmp_path: Path) -> None:
    image = write(tmp_path / "k", bzimage(init_size=2 * layout.MIB, setup_data=0))
    state = load(ram, config(image, cmdline="x"))
    page = boot.BootParams.from_buffer_copy(ram.read(state.info, sizeof(boot.BootParams)))
    assert (page.hdr.version, page.hdr.init_size) == (0x020F, 2 * layout.MIB)
    assert (page.hdr.type_of_loader, page.hdr.cmd_line_ptr) == (boot.LOADER_UNDEFINED, layout.CMDLINE)
    assert ram.read(16 * layout.MIB, len(CODE)) == CODE


def test_an_initrd_stays_below_what_a_bzimage_allows(ram: FakeRam, tmp_path: Path) -> None:
    image = write(tmp_path / "k", bzimage(initrd_addr_max=24 * layout.MIB - 1))
    initrd = write(tmp_path / "i", b"x" * 5000)
    state = load(ram, config(image, initrd=str(initrd)))
    page = boot.BootParams.from_buffer_copy(ram.read(state.info, sizeof(boot.BootParams)))
    assert page.hdr.ramdisk_image == 24 * layout.MIB - 8192


def test_pvh_begins_in_flat_protected_mode_with_its_start_info(ram: FakeRam, tmp_path: Path) -> None:
    kernel = write(tmp_path / "k", elf64(notes=pvh_note(layout.KERNEL + 4)))
    initrd = write(tmp_path / "i", b"initrd")
    state = load(ram, config(kernel, initrd=str(initrd), cmdline="a b"), tables=b"RSD PTR ")
    assert state.protocol == Protocol.PVH
    vcpu = started(state)
    assert (vcpu.regs.rip, vcpu.regs.rbx) == (layout.KERNEL + 4, layout.START_INFO)
    assert (vcpu.sregs.cr0, vcpu.sregs.cr4, vcpu.sregs.efer) == (0x11, 0, 0)
    for name in ("cs", "ds", "es", "ss"):
        register = getattr(vcpu.sregs, name)
        assert (register.base, register.limit, register.db, register.l) == (0, 0xFFFFFFFF, 1, 0)
    assert (vcpu.sregs.tr.base, vcpu.sregs.tr.limit) == (0, 0x67)
    info = boot.HvmStartInfo.from_buffer_copy(ram.read(vcpu.regs.rbx, sizeof(boot.HvmStartInfo)))
    assert (info.magic, info.version, info.rsdp_paddr) == (0x336EC578, 1, layout.ACPI_RSDP)
    assert ram.read(info.cmdline_paddr, 4) == b"a b\0"
    module = boot.HvmModlistEntry.from_buffer_copy(ram.read(info.modlist_paddr, sizeof(boot.HvmModlistEntry)))
    assert (info.nr_modules, ram.read(module.paddr, module.size)) == (1, b"initrd")
    size = sizeof(boot.HvmMemmapEntry)
    entries = [
        boot.HvmMemmapEntry.from_buffer_copy(ram.read(info.memmap_paddr + index * size, size))
        for index in range(info.memmap_entries)
    ]
    assert [(one.addr, one.size, one.type) for one in entries] == [
        (one.address, one.size, one.kind) for one in memory_map(MEMORY)
    ]
    assert info.memmap_paddr + len(entries) * size <= layout.ZERO_PAGE


def test_multiboot_begins_with_its_magic_and_its_information(ram: FakeRam, tmp_path: Path) -> None:
    initrd = write(tmp_path / "i", b"module")
    state = load(ram, config(write(tmp_path / "k", multiboot_flat()), initrd=str(initrd), cmdline="x" * 9000))
    vcpu = started(state)
    assert (vcpu.regs.rax, vcpu.regs.rip) == (0x2BADB002, layout.KERNEL + 32)
    info = boot.MultibootInfo.from_buffer_copy(ram.read(vcpu.regs.rbx, sizeof(boot.MultibootInfo)))
    assert (info.flags, info.mem_lower, info.mem_upper) == (0x24D, 639, 31 * 1024)
    module = boot.MultibootModule.from_buffer_copy(ram.read(info.mods_addr, sizeof(boot.MultibootModule)))
    assert ram.read(module.mod_start, module.mod_end - module.mod_start) == b"module"
    assert ram.read(info.boot_loader_name, 7) == b"nagaya\0"
    first = boot.MultibootMemory.from_buffer_copy(ram.read(info.mmap_addr, sizeof(boot.MultibootMemory)))
    assert (first.size, first.addr, first.len, first.type) == (20, 0, layout.EBDA, 1)


def test_the_memory_map_has_each_byte_once() -> None:
    for memory in (2 * layout.MIB, layout.LOW_RAM_END, 8 * layout.GIB):
        ranges = memory_map(memory)
        for one, other in pairwise(ranges):
            assert one.address + one.size <= other.address
        ram = sum(one.size for one in ranges if one.kind == boot.E820_RAM)
        assert ram == memory - (layout.KERNEL - layout.EBDA)


@pytest.mark.parametrize(
    ("kernel", "fields", "words"),
    [
        (elf64(address=31 * layout.MIB, memory=2 * layout.MIB), {}, "occupies memory up to 0x2100000"),
        (elf64(), {"initrd": "big"}, "initrd .*big of 33554432 bytes does not fit"),
        (elf64(), {"initrd": "empty"}, "initrd .*empty is empty"),
        (elf64(), {"initrd": "."}, "is not a regular file"),
        (elf64(), {"cmdline": "x" * 2048}, "has 2048 bytes; .* takes 2047"),
        (bzimage(cmdline_size=255), {"cmdline": "x" * 256}, "has 256 bytes; .* takes 255"),
        (elf64(), {"cmdline": "a\0b"}, "contains a zero byte"),
    ],
)
def test_what_does_not_fit_is_said(
    ram: FakeRam, tmp_path: Path, kernel: bytes, fields: dict[str, str], words: str
) -> None:
    with (tmp_path / "big").open("wb") as big:
        big.truncate(MEMORY)
    write(tmp_path / "empty", b"")
    if "initrd" in fields:
        fields = fields | {"initrd": str(tmp_path / fields["initrd"])}
    with pytest.raises(SpecError, match=words):
        load(ram, config(write(tmp_path / "k", kernel), MEMORY, **fields))


def test_files_that_cannot_be_read_are_named(ram: FakeRam, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"kernel .*/none': there is no such file"):
        load(ram, config(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpecError, match="pipe is not a regular file"):
        load(ram, config(tmp_path / "pipe"))


EDIT = st.tuples(st.integers(0, 640), st.sampled_from([0, 1, 0x80, 0xFFFF, 0x2000000, 2**31, 2**64 - 1]))
BASES = [elf64(notes=pvh_note(layout.KERNEL)), elf64(), bzimage(), multiboot_flat()]


@settings(deadline=None)
@given(st.sampled_from(BASES), st.lists(EDIT, max_size=3))
def test_no_kernel_is_written_beside_ram(
    tmp_path_factory: pytest.TempPathFactory, base: bytes, edits: list[tuple[int, int]]
) -> None:
    content = bytearray(base)
    for at, value in edits:
        patch = value.to_bytes(max(1, value.bit_length() + 7 >> 3), "little")
        content[at : at + len(patch)] = patch
    ram = FakeRam(2 * layout.MIB)
    kernel = write(tmp_path_factory.getbasetemp() / "fuzz", bytes(content))
    with suppress(NagayaError):
        load(ram, config(kernel, 2 * layout.MIB))
    assert ram.guarded()
