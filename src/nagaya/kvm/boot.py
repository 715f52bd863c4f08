"""Brings a kernel into guest RAM and a vCPU to its first instruction: what firmware does elsewhere.

`load` fills RAM: kernel, initramfs, command line, ACPI tables, and what the kernel's protocol wants to know;
`apply` sets the boot vCPU's registers. The files are read straight into guest memory, once.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from typing import Protocol as Interface

from nagaya.abi import kvm
from nagaya.abi.x86 import (
    CODE32,
    CODE64,
    CR0,
    CR4,
    DATA32,
    EFER,
    RFLAGS,
    TSS32,
    PageEntry,
    SegmentDescriptor,
    segment,
)
from nagaya.errors import NotFoundError, PermissionDeniedError, SpecError
from nagaya.hw import layout
from nagaya.hw.wires import Ram
from nagaya.kvm import linuxboot, multiboot, pvh
from nagaya.kvm.bootinfo import BootInfo, Module
from nagaya.kvm.config import MachineConfig
from nagaya.kvm.kernelfile import KernelFile, Protocol, parse

_IDENTITY_MAP = layout.GIB  # what the page tables of `_paging` reach
_LARGE_PAGE = 2 * layout.MIB
# Linux copies this many bytes of a command line and cuts the rest off (COMMAND_LINE_SIZE, arch/x86)
_CMDLINE_LINUX = 2047
_BOOT_CS, _BOOT_DS, _BOOT_TR = 0x10, 0x18, 0x08  # __BOOT_CS and __BOOT_DS are fixed by boot.rst


class BootVcpu(Interface):
    """What `apply` needs of a vCPU."""

    def get_sregs(self) -> kvm.Sregs:
        """KVM_GET_SREGS."""

    def set_sregs(self, sregs: kvm.Sregs) -> None:
        """KVM_SET_SREGS."""

    def set_regs(self, regs: kvm.Regs) -> None:
        """KVM_SET_REGS."""


@dataclass(frozen=True, slots=True)
class BootState:
    """How the boot vCPU begins."""

    protocol: Protocol
    entry: int  # guest-physical address of the first instruction
    info: int  # guest-physical address of what the kernel is told


def load(ram: Ram, config: MachineConfig, tables: bytes = b"") -> BootState:
    """Put `config`'s kernel, initrd and command line, and the ACPI `tables`, into `ram`.

    `ram` must be zero where the kernel's bss comes to lie: new, or discarded before a reset. `tables` begin
    with the RSDP (`nagaya.hw.acpi`); without them the guest finds no ACPI. Raises `SpecError` that says
    what is wrong with a file, and `NotFoundError` or `PermissionDeniedError` if it cannot be read.
    """
    with _open(config.kernel, "kernel") as file:
        kernel = parse(file, config.kernel)
        low = ram.regions[0].size
        if kernel.end > low:
            raise SpecError(
                f"kernel {config.kernel} occupies memory up to {kernel.end:#x}, {config.name} has {low:#x}",
                hint=_enough(config, kernel.end),
                field="memory",
            )
        for part in kernel.segments:
            _read_into(file, part.offset, ram, part.address, part.length)
    initrd = _load_initrd(ram, config, kernel)
    ram.write(layout.CMDLINE, _cmdline(config.cmdline, kernel) + b"\0")
    if tables:
        ram.write(layout.ACPI_RSDP, tables)
    told = BootInfo(config.memory, initrd, layout.ACPI_RSDP if tables else 0)
    match kernel.protocol:
        case Protocol.LINUX:
            _check_identity_map(kernel)
            _paging(ram)
            _descriptors(ram, CODE64)
            info = linuxboot.write_zero_page(ram, told, kernel.setup)
        case Protocol.PVH:
            _descriptors(ram, CODE32)
            info = pvh.write_start_info(ram, told)
        case Protocol.MULTIBOOT:
            _descriptors(ram, CODE32)
            info = multiboot.write_info(ram, told)
    return BootState(kernel.protocol, kernel.entry, info)


def apply(boot: BootState, vcpu: BootVcpu) -> None:
    """Set the registers of the boot vCPU as the protocol of `boot` says; the others wait for INIT and SIPI.

    Linux: boot.rst, "64-bit Boot Protocol". PVH: docs/misc/pvh.pandoc, "Initial state". Multiboot: 3.2.
    """
    sregs = vcpu.get_sregs()
    wide = boot.protocol == Protocol.LINUX
    sregs.cs = segment(_BOOT_CS, CODE64 if wide else CODE32)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, segment(_BOOT_DS, DATA32))
    sregs.tr = segment(_BOOT_TR, TSS32)
    sregs.ldt = kvm.Segment(unusable=1)
    sregs.gdt = kvm.Dtable(base=layout.GDT, limit=4 * 8 - 1)
    sregs.idt = kvm.Dtable(base=layout.IDT, limit=0)
    sregs.cr0 = CR0.of(PE=1, ET=1, PG=wide)
    sregs.cr3 = layout.PAGE_TABLES if wide else 0
    sregs.cr4 = CR4.of(PAE=wide)
    sregs.efer = EFER.of(LME=wide, LMA=wide)
    vcpu.set_sregs(sregs)
    regs = kvm.Regs(rip=boot.entry, rflags=RFLAGS.of(RESERVED1=1), rsp=layout.BOOT_STACK)
    match boot.protocol:
        case Protocol.LINUX:
            regs.rsi = boot.info
        case Protocol.PVH:
            regs.rbx = boot.info
        case Protocol.MULTIBOOT:
            regs.rax, regs.rbx = multiboot.LOADER_MAGIC, boot.info
    vcpu.set_regs(regs)


@contextmanager
def _open(path: str, what: str) -> Iterator[FileIO]:
    try:
        # Without O_NONBLOCK a named pipe would wait here for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"{what} {path!r}: there is no such file", field=f"boot.{what}") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{what} {path} may not be read", field=f"boot.{what}") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"{what} {path!r} cannot be opened: {error}", field=f"boot.{what}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SpecError(f"{what} {path} is not a regular file", field=f"boot.{what}")
        with FileIO(fd, closefd=False) as file:
            yield file
    finally:
        os.close(fd)


def _read_into(file: FileIO, offset: int, ram: Ram, address: int, size: int) -> None:
    """Read `size` bytes of `file` into guest memory, without a copy between."""
    view = _view(ram, address, size)
    file.seek(offset)
    while view:
        count = file.readinto(view)
        if not count:
            raise SpecError(f"a file became shorter while it was read: {len(view)} bytes are missing")
        view = view[count:]


def _view(ram: Ram, address: int, size: int) -> memoryview:
    for region in ram.regions:
        if region.address <= address and address + size <= region.address + region.size:
            start = region.host + address - region.address
            return memoryview((ctypes.c_char * size).from_address(start)).cast("B")
    raise SpecError(f"{size:#x} bytes at {address:#x} are not all in RAM")


def _load_initrd(ram: Ram, config: MachineConfig, kernel: KernelFile) -> Module | None:
    """As high in low RAM as the kernel takes it: what is below stays in one piece."""
    if not config.initrd:
        return None
    with _open(config.initrd, "initrd") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise SpecError(f"initrd {config.initrd} is empty", field="boot.initrd")
        top = ram.regions[0].size
        if kernel.setup is not None:
            top = min(top, kernel.setup.initrd_addr_max + 1)
        address = (top - size) // layout.PAGE * layout.PAGE
        if address < kernel.end:
            raise SpecError(
                f"initrd {config.initrd} of {size} bytes does not fit between the kernel's end"
                f" at {kernel.end:#x} and {top:#x}",
                hint=_enough(config, kernel.end + size),
                field="memory",
            )
        _read_into(file, 0, ram, address, size)
    return Module(address, size)


def _enough(config: MachineConfig, used: int) -> str:
    return f"give {config.name} at least {-(-used // layout.MIB) + 16} MiB of memory"


def _cmdline(cmdline: str, kernel: KernelFile) -> bytes:
    encoded = cmdline.encode(errors="surrogateescape")
    limit = layout.CMDLINE_MAX - 1 if kernel.protocol == Protocol.MULTIBOOT else _CMDLINE_LINUX
    if kernel.setup is not None:
        limit = min(kernel.setup.cmdline_size, layout.CMDLINE_MAX - 1)
    if len(encoded) > limit:
        raise SpecError(
            f"the kernel's command line has {len(encoded)} bytes; {kernel.path} takes {limit}",
            field="boot.cmdline",
        )
    if b"\0" in encoded:
        raise SpecError("the kernel's command line contains a zero byte", field="boot.cmdline")
    return encoded


def _check_identity_map(kernel: KernelFile) -> None:
    if kernel.end > _IDENTITY_MAP:
        raise SpecError(
            f"kernel {kernel.path} occupies memory up to {kernel.end:#x}; entered in 64-bit mode it must end"
            f" below {_IDENTITY_MAP:#x}",
            field="boot.kernel",
        )


def _paging(ram: Ram) -> None:
    """PML4, PDPT and PD: the first GiB, each address to itself, in pages of 2 MiB."""
    pml4, pdpt, pd = (layout.PAGE_TABLES + index * layout.PAGE for index in range(3))
    flags = PageEntry.of(P=1, RW=1)
    ram.write(pml4, (pdpt | flags).to_bytes(8, "little"))
    ram.write(pdpt, (pd | flags).to_bytes(8, "little"))
    large = PageEntry.of(P=1, RW=1, PS=1)
    entries = (address | large for address in range(0, _IDENTITY_MAP, _LARGE_PAGE))
    ram.write(pd, b"".join(entry.to_bytes(8, "little") for entry in entries))


def _descriptors(ram: Ram, code: SegmentDescriptor) -> None:
    """The GDT of the selectors that `apply` loads, and an IDT without a gate: exceptions are fatal."""
    gdt = (0, TSS32, code, DATA32)
    ram.write(layout.GDT, b"".join(int(entry).to_bytes(8, "little") for entry in gdt))
    ram.write(layout.IDT, bytes(8))
