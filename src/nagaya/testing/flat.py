"""A VM around a few instructions, for tests of what is below devices: no board, no boot protocol.

    code = assemble("mov $0x80, %al; out %al, $0x80; hlt", Mode.PROTECTED)
    with Flat(code, Mode.PROTECTED) as flat:
        flat.run()
        flat.wait(lambda: flat.ports.written == [(0x80, 1, 0x80)])

The code begins at `CODE` with `STACK` below it, interrupts off. In long mode and ring 3 the first 4 GiB are
mapped where they are, accessible to ring 3, which may use all ports.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self

from nagaya.abi import kvm, x86
from nagaya.errors import BuildError, MachineFailedError
from nagaya.hw import layout
from nagaya.kvm.irq import KvmDoorbells, KvmInterrupts
from nagaya.kvm.memory import GuestMemory
from nagaya.kvm.models import cpuid
from nagaya.kvm.system import Kvm
from nagaya.kvm.vcpu import Space, Vcpu
from nagaya.kvm.vcpus import Vcpus
from nagaya.kvm.vm import Vm

CODE = 0x8000  # a start-up IPI's page, so that application processors can begin here too
STACK = 0x7000
GDT = 0x500
IDT = 0x1000
TSS = 0x2000
IO_BITMAP = 0x68  # in the TSS; all zero: not every host keeps a ring 3's I/O privilege level
TABLES = 0x10000
MMIO = 0xD0000000  # no RAM
CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR = 0x08, 0x10, 0x18
USER_DATA, USER_CODE = 0x2B, 0x33  # as Linux numbers them: some hosts run only these natively


class Mode(Enum):
    """How the first vCPU begins; the value is what the assembler calls it."""

    REAL = "code16"
    PROTECTED = "code32"
    LONG = "code64"
    RING3 = "code64 "


def assemble(source: str, mode: Mode) -> bytes:
    """The machine code of AT&T assembly that starts at `CODE`. Raises `BuildError`."""
    with tempfile.TemporaryDirectory(prefix="ng") as directory:
        unit, binary = Path(directory, "code.S"), Path(directory, "code")
        unit.write_text(f".{mode.value.strip()}\n{source}\n")
        link = [
            "-nostdlib",
            "-static",
            "-no-pie",
            f"-Wl,-Ttext={CODE:#x},-e,0,--oformat=binary,--build-id=none",
        ]
        done = subprocess.run(["gcc", *link, "-o", binary, unit], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"gcc cannot assemble: {done.stderr.strip()}")
        return binary.read_bytes()


class Recorder:
    """A space that answers from `values` (or zero) and remembers what was written."""

    def __init__(self, changed: threading.Condition) -> None:
        self.values: dict[int, int] = {}
        self.written: list[tuple[int, int, int]] = []  # address, size, value
        self.reads: list[tuple[int, int]] = []  # address, size
        self._changed = changed

    def read(self, address: int, size: int) -> int:
        """From `values`."""
        with self._changed:
            self.reads.append((address, size))
            self._changed.notify_all()
        return self.values.get(address, 0) & ((1 << 8 * size) - 1)

    def write(self, address: int, size: int, value: int) -> None:
        """Remember it."""
        with self._changed:
            self.written.append((address, size, value))
            self._changed.notify_all()


class Flat:
    """The VM; a context manager. `ports` and `mmio` are recorders unless others are given."""

    def __init__(
        self,
        code: bytes,
        mode: Mode,
        *,
        cpus: int = 1,
        model: str = "host",
        ports: Space | None = None,
        mmio: Space | None = None,
        ram: int = layout.MIB,
    ) -> None:
        self.changed = threading.Condition()
        self.failures: list[MachineFailedError] = []
        self.ports = Recorder(self.changed)
        self.mmio = Recorder(self.changed)
        self.lock = threading.Lock()
        self._stack = ExitStack()
        try:
            system = self._stack.enter_context(Kvm())
            self.memory = self._stack.enter_context(GuestMemory(ram))
            self.vm = self._stack.enter_context(Vm(system, self.memory.regions))
            self.interrupts, self.doorbells = KvmInterrupts(self.vm), KvmDoorbells(self.vm)
            created = [
                self._stack.enter_context(
                    Vcpu(self.vm, index, ports=ports or self.ports, memory=mmio or self.mmio, lock=self.lock)
                )
                for index in range(cpus)
            ]
            supported = system.supported_cpuid()
            for vcpu in created:
                vcpu.set_cpuid(cpuid(model, supported, index=vcpu.index, cpus=cpus))
            self.memory.write(CODE, code)
            begin(created[0], self.memory, mode)
            self.vcpus = Vcpus(created, self._failed)
            self._stack.callback(self.vcpus.stop)
            self.vcpus.start()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def vcpu(self) -> Vcpu:
        """The first vCPU."""
        return self.vcpus.vcpus[0]

    def run(self) -> None:
        """Let the vCPUs run."""
        self.vcpus.resume()

    def wait(self, until: Callable[[], bool], seconds: float = 60) -> None:
        """Until it is so. Raises the failure that comes instead, or `MachineFailedError` after `seconds`."""
        with self.changed:
            self.changed.wait_for(lambda: until() or bool(self.failures), seconds)
            if not until():
                raise self.failures[0] if self.failures else MachineFailedError("it did not come to that")

    def word(self, address: int) -> int:
        """32 bits of guest memory."""
        return int.from_bytes(self.memory.read(address, 4), "little")

    def _failed(self, error: MachineFailedError) -> None:
        with self.changed:
            self.failures.append(error)
            self.changed.notify_all()


def begin(vcpu: Vcpu, memory: GuestMemory, mode: Mode) -> None:
    """Put a vCPU at `CODE` in a mode."""
    sregs = vcpu.get_sregs()
    if mode is Mode.REAL:
        sregs.cs = x86.real_mode_segment(0)
    else:
        _protected(sregs, memory)
    if mode in (Mode.LONG, Mode.RING3):
        _long(sregs, memory)
    flags = x86.RFLAGS.of(RESERVED1=1)
    if mode is Mode.RING3:
        user_code, user_data = x86.CODE64.replace(DPL=3), x86.DATA32.replace(DPL=3)
        sregs.cs = x86.segment(USER_CODE, user_code)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, x86.segment(USER_DATA, user_data))
        flags = flags.replace(IOPL=3)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm.Regs(rip=CODE, rsp=STACK, rflags=flags))


def _protected(sregs: kvm.Sregs, memory: GuestMemory) -> None:
    user_data, user_code = x86.DATA32.replace(DPL=3), x86.CODE64.replace(DPL=3)
    tss = x86.TSS32.replace(BASE_LOW=TSS, LIMIT_LOW=IO_BITMAP + 8192)
    memory.write(TSS + 0x66, IO_BITMAP.to_bytes(2, "little"))
    memory.write(TSS + IO_BITMAP + 8192, b"\xff")  # SDM 1, 19.5.2
    table = (0, x86.CODE32, x86.DATA32, tss, 0, user_data, user_code)
    memory.write(GDT, b"".join(int(entry).to_bytes(8, "little") for entry in table))
    sregs.gdt = kvm.Dtable(base=GDT, limit=8 * len(table) - 1)
    sregs.idt = kvm.Dtable(base=IDT, limit=0xFFF)
    sregs.cs = x86.segment(CODE_SELECTOR, x86.CODE32)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, x86.segment(DATA_SELECTOR, x86.DATA32))
    sregs.tr = x86.segment(TSS_SELECTOR, tss)
    sregs.cr0 = x86.CR0.of(PE=1, ET=1, NE=1)


def _long(sregs: kvm.Sregs, memory: GuestMemory) -> None:
    entry = x86.PageEntry.of(P=1, RW=1, US=1)
    directories = TABLES + 2 * layout.PAGE
    pages = [page * 2 * layout.MIB | entry.replace(PS=1) for page in range(4 * 512)]
    pointers = [directories + at * layout.PAGE | entry for at in range(4)]
    for address, table in ((TABLES, [TABLES + layout.PAGE | entry]), (TABLES + layout.PAGE, pointers)):
        memory.write(address, _words(table))
    memory.write(directories, _words(pages))
    memory.write(GDT + CODE_SELECTOR, _words([int(x86.CODE64)]))
    sregs.cs = x86.segment(CODE_SELECTOR, x86.CODE64)
    sregs.cr3 = TABLES
    sregs.cr4 = x86.CR4.of(PAE=1, OSFXSR=1, OSXMMEXCPT=1)
    sregs.cr0 = x86.CR0.of(PE=1, MP=1, ET=1, NE=1, PG=1)
    sregs.efer = x86.EFER.of(LME=1, LMA=1)


def _words(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)
