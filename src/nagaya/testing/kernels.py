"""Small kernels of every format, and guest memory without a VM, for tests of loading."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from ctypes import sizeof
from pathlib import Path

from nagaya.abi import boot, elf
from nagaya.errors import UsageError
from nagaya.hw import layout
from nagaya.hw.wires import RamRegion
from nagaya.kvm.config import MachineConfig

CODE = b"\xf4" * 64


class FakeRam:
    """Guest RAM without a VM: `wires.Ram` on anonymous memory between two guards that nothing may change."""

    GUARD = 64 * layout.KIB

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size + 2 * self.GUARD)
        host = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + self.GUARD
        self.regions: Sequence[RamRegion] = (RamRegion(0, size, -1, 0, host),)
        self.size = size
        for start in (0, self.GUARD + size):
            self._memory[start : start + self.GUARD] = b"\xa5" * self.GUARD

    def guarded(self) -> bool:
        """Whether nobody wrote outside."""
        end = self.GUARD + self.size
        return {*self._memory[: self.GUARD], *self._memory[end:]} == {0xA5}

    def read(self, address: int, size: int) -> bytes:
        """As `wires.Ram`."""
        self._check(address, size)
        return self._memory[self.GUARD + address : self.GUARD + address + size]

    def write(self, address: int, content: bytes | bytearray | memoryview) -> None:
        """As `wires.Ram`."""
        self._check(address, len(content))
        self._memory[self.GUARD + address : self.GUARD + address + len(content)] = bytes(content)

    def _check(self, address: int, size: int) -> None:
        if address < 0 or address + size > self.size:
            raise UsageError(f"{size:#x} bytes at {address:#x} are not RAM")


def config(
    kernel: Path, memory: int = 32 * layout.MIB, *, initrd: str = "", cmdline: str = ""
) -> MachineConfig:
    """A machine that boots `kernel`."""
    return MachineConfig("m1", "0" * 32, memory, kernel=str(kernel), initrd=initrd, cmdline=cmdline)


def elf64(
    *,
    address: int = layout.KERNEL,
    memory: int = 4096,
    entry: int | None = None,
    code: bytes = CODE,
    notes: bytes = b"",
    machine: int = elf.EM_X86_64,
) -> bytes:
    """An ELF executable of one segment, and one of notes if there are any."""
    count = 2 if notes else 1
    start = sizeof(elf.Elf64Header) + count * sizeof(elf.Elf64ProgramHeader)
    header = elf.Elf64Header(
        e_type=elf.ET_EXEC,
        e_machine=machine,
        e_version=1,
        e_entry=address if entry is None else entry,
        e_phoff=sizeof(elf.Elf64Header),
        e_ehsize=sizeof(elf.Elf64Header),
        e_phentsize=sizeof(elf.Elf64ProgramHeader),
        e_phnum=count,
    )
    header.e_ident[:7] = [*elf.MAGIC, elf.ELFCLASS64, elf.ELFDATA2LSB, 1]
    parts = [
        bytes(header),
        bytes(
            elf.Elf64ProgramHeader(
                p_type=elf.PT_LOAD, p_offset=start, p_paddr=address, p_filesz=len(code), p_memsz=memory
            )
        ),
    ]
    if notes:
        parts.append(
            bytes(
                elf.Elf64ProgramHeader(
                    p_type=elf.PT_NOTE, p_offset=start + len(code), p_filesz=len(notes), p_memsz=len(notes)
                )
            )
        )
    return b"".join((*parts, code, notes))


def note(owner: bytes, kind: int, body: bytes) -> bytes:
    """An ELF note."""
    padded = (part.ljust(len(part) + 3 & ~3, b"\0") for part in (owner, body))
    return bytes(elf.ElfNote(n_namesz=len(owner), n_descsz=len(body), n_type=kind)) + b"".join(padded)


def pvh_note(entry: int) -> bytes:
    """The note with which a kernel asks for PVH, behind another one."""
    other = note(b"GNU\0", 3, b"build-id")
    return other + note(boot.XEN_NOTE_NAME, boot.XEN_ELFNOTE_PHYS32_ENTRY, entry.to_bytes(8, "little"))


def bzimage(code: bytes = CODE, payload: bytes = b"", **fields: int) -> bytes:
    """A boot image of protocol 2.15: one setup sector, `code`, and `payload` behind it."""
    code = code.ljust(0x400, b"\xf4")
    setup = boot.SetupHeader(
        setup_sects=1,
        boot_flag=boot.BOOT_FLAG,
        jump=0x6AEB,
        header=boot.HEADER_MAGIC,
        version=0x020F,
        loadflags=boot.LOADED_HIGH,
        xloadflags=boot.XLF_KERNEL_64,
        initrd_addr_max=0x7FFFFFFF,
        cmdline_size=2047,
        pref_address=16 * layout.MIB,
        init_size=layout.MIB,
        payload_offset=len(code),
        payload_length=len(payload),
    )
    for name, value in fields.items():
        setattr(setup, name, value)
    sectors = bytearray(2 * boot.SECTOR)
    sectors[boot.SETUP_HEADER : boot.SETUP_HEADER + sizeof(setup)] = bytes(setup)
    return bytes(sectors) + code + payload


def multiboot_flat(address: int = layout.KERNEL, code: bytes = CODE, **fields: int) -> bytes:
    """A multiboot kernel that is no ELF file."""
    flags = boot.MULTIBOOT_ADDRESSES
    header = boot.MultibootHeader(
        magic=boot.MULTIBOOT_HEADER_MAGIC,
        flags=flags,
        header_addr=address,
        load_addr=address,
        entry_addr=address + sizeof(boot.MultibootHeader),
    )
    for name, value in fields.items():
        setattr(header, name, value)
    header.checksum = -(header.magic + header.flags) & 0xFFFFFFFF
    return bytes(header) + code
