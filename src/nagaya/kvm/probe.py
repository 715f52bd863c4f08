"""What /dev/kvm is worth on this host, found by running a guest for a few milliseconds.

A KVM without VT-x or AMD-V exists: it runs a guest's ring 3 natively and emulates ring 0, at about a
thousandth of the speed. Flags and module names only hint at that; a loop in ring 0 shows it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from nagaya.abi import kvm, x86
from nagaya.errors import MachineFailedError, NagayaError
from nagaya.hw import layout
from nagaya.kvm.memory import GuestMemory
from nagaya.kvm.models import MODELS, missing_features
from nagaya.kvm.system import Kvm
from nagaya.kvm.vcpu import Vcpu
from nagaya.kvm.vcpus import Vcpus
from nagaya.kvm.vm import Vm

MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")
NATIVE_MIPS = 50.0  # emulators reach 1 to 5 million instructions a second, any CPU over 500

_CODE = 0x1000
_LOOPS = 2000  # 4 ms where ring 0 is emulated
_ROUNDS = 3  # the best counts: another process may take the CPU away
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class HostKvm:
    """Facts about this host's KVM. `usable`: a machine of the kvm engine can be made."""

    usable: bool
    problem: str = ""  # why not
    hint: str = ""  # and what to do
    virtualization: str = ""  # "VT-x", "AMD-V" or ""
    module: str = ""  # which of MODULES is loaded, if it can be seen
    nested: bool = False  # this host is a virtual machine itself
    ring0_mips: float = 0.0  # million instructions a second in the guest's ring 0
    max_vcpus: int = 0
    models: tuple[str, ...] = ()  # CPU models that this host can give

    @property
    def native(self) -> bool:
        """A guest's kernel runs on the CPU: any operating system works."""
        return self.ring0_mips >= NATIVE_MIPS

    @property
    def sentence(self) -> str:
        """For people: what it is and what works."""
        if not self.usable:
            return self.problem
        what = ", ".join(word for word in (self.virtualization or "no VT-x or AMD-V", self.module) if word)
        if self.native:
            within = ", inside another virtual machine" if self.nested else ""
            return f"{what}{within}: guest kernels run natively, up to {self.max_vcpus} vCPUs"
        return (
            f"{what}: guest kernels are emulated ({self.ring0_mips:.1f} million instructions a second), only"
            " what runs in ring 3 is native; Linux boots slowly and gets no further than its kernel"
        )


def probe() -> HostKvm:
    """Find out. Never raises a `NagayaError`: what is wrong is in the answer."""
    flags, module = cpu_flags(), _module()
    virtualization = "VT-x" if "vmx" in flags else "AMD-V" if "svm" in flags else ""
    nested = "hypervisor" in flags
    try:
        with Kvm() as system:
            speed = ring0_speed(system)
            supported = system.supported_cpuid()
            return HostKvm(
                usable=True,
                virtualization=virtualization,
                module=module,
                nested=nested,
                ring0_mips=speed,
                max_vcpus=system.max_vcpus,
                models=tuple(name for name in MODELS if not missing_features(name, supported)),
            )
    except NagayaError as error:
        return HostKvm(False, error.message, error.hint, virtualization, module, nested)


def ring0_speed(system: Kvm) -> float:
    """Million instructions a second of a guest in ring 0. Raises a `NagayaError` if no guest runs."""
    clock = _Clock()
    with (
        GuestMemory(layout.MIB) as memory,
        Vm(system, memory.regions, irqchip=False) as vm,
        Vcpu(vm, 0, ports=clock, memory=clock, lock=threading.Lock()) as vcpu,
    ):
        memory.write(_CODE, _program())
        sregs = vcpu.get_sregs()
        sregs.cs = x86.segment(0x8, x86.CODE32)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, x86.segment(0x10, x86.DATA32))
        sregs.cr0 = x86.CR0.of(PE=1, ET=1, NE=1)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(kvm.Regs(rip=_CODE, rflags=x86.RFLAGS.of(RESERVED1=1)))
        vcpus = Vcpus([vcpu], clock.failed)
        vcpus.start()
        try:
            vcpus.resume()
            finished = clock.done.wait(_PATIENCE_S)
        finally:
            vcpus.stop()
    if clock.failure is not None:
        raise clock.failure
    if not finished:
        raise MachineFailedError(f"a guest of {_LOOPS} instructions did not end within {_PATIENCE_S:.0f} s")
    fastest = min(after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False))
    return 2 * _LOOPS * 1000 / max(fastest, 1)


def cpu_flags() -> frozenset[str]:
    """The flags that /proc/cpuinfo lists; none where there is no /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _module() -> str:
    return next((name for name in MODULES if Path("/sys/module", name).exists()), "")


def _program() -> bytes:
    """OUT, then `_ROUNDS` times a loop of two instructions and an OUT; 32 bits."""
    out = b"\xe6\x80"
    loop = b"\xb9" + _LOOPS.to_bytes(4, "little") + b"\x49\x75\xfd"  # mov ecx, N; 1: dec ecx; jnz 1b
    return out + _ROUNDS * (loop + out) + b"\xf4"


@dataclass(slots=True)
class _Clock:
    """The guest's port: notes the time of each write."""

    marks: list[int] = field(default_factory=list)  # ns
    done: threading.Event = field(default_factory=threading.Event)
    failure: MachineFailedError | None = None

    def read(self, address: int, size: int) -> int:
        return 0

    def write(self, address: int, size: int, value: int) -> None:
        self.marks.append(time.monotonic_ns())
        if len(self.marks) > _ROUNDS:
            self.done.set()

    def failed(self, error: MachineFailedError) -> None:
        if not self.done.is_set():  # HLT is how it ends
            self.failure = error
            self.done.set()
