"""Boot structures against the system's headers, by its own compiler."""

from __future__ import annotations

import subprocess
from ctypes import sizeof
from pathlib import Path

from nagaya.abi import boot, elf

STRUCTURES = (
    ("struct setup_header", boot.SetupHeader),
    ("struct boot_params", boot.BootParams),
    ("struct boot_e820_entry", boot.E820Entry),
    ("Elf64_Ehdr", elf.Elf64Header),
    ("Elf32_Ehdr", elf.Elf32Header),
    ("Elf64_Phdr", elf.Elf64ProgramHeader),
    ("Elf32_Phdr", elf.Elf32ProgramHeader),
    ("Elf64_Nhdr", elf.ElfNote),
)
CONSTANTS = {
    "E820_MAX_ENTRIES_ZEROPAGE": boot.E820_MAX,
    "LOADED_HIGH": boot.LOADED_HIGH,
    "XLF_KERNEL_64": boot.XLF_KERNEL_64,
    "ET_EXEC": elf.ET_EXEC,
    "ET_DYN": elf.ET_DYN,
    "ET_REL": elf.ET_REL,
    "ET_CORE": elf.ET_CORE,
    "PT_LOAD": elf.PT_LOAD,
    "PT_NOTE": elf.PT_NOTE,
    "PT_INTERP": elf.PT_INTERP,
    "EM_386": elf.EM_386,
    "EM_X86_64": elf.EM_X86_64,
}


def test_layouts_are_the_headers(tmp_path: Path) -> None:
    lines = ["#include <elf.h>", "#include <stddef.h>", "#include <stdio.h>", "#include <asm/bootparam.h>"]
    lines.append("int main(void) {")
    expected = []
    for name, structure in STRUCTURES:
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(sizeof(structure))
        for field in structure._fields_:
            if field[0].startswith("_pad"):
                continue
            lines.append(f'printf("%zu\\n", offsetof({name}, {field[0]}));')
            expected.append(getattr(structure, field[0]).offset)
    for name, value in CONSTANTS.items():
        lines.append(f'printf("%ld\\n", (long){name});')
        expected.append(value)
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["gcc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert [int(line) for line in printed.split()] == expected


def test_sizes_of_what_no_header_here_declares() -> None:
    assert {kind.__name__: sizeof(kind) for kind in (boot.HvmStartInfo, boot.HvmModlistEntry)} == {
        "HvmStartInfo": 56,
        "HvmModlistEntry": 32,
    }
    assert (sizeof(boot.HvmMemmapEntry), sizeof(boot.MultibootHeader), sizeof(boot.MultibootInfo)) == (
        24,
        32,
        68,
    )
    assert (sizeof(boot.MultibootModule), sizeof(boot.MultibootMemory)) == (16, 24)
