"""One payload, run by our VMM, by QEMU's microvm and by the least VMM in C (peer.c)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from nagaya.abi import kvm
from nagaya.kvm.config import DeviceConfig
from nagaya.kvm.system import Kvm, ioctl
from nagaya.kvm.vm import Vm
from nagaya.testing.bare import Bare
from nagaya.testing.payload import build

HERE = Path(__file__).parent
# Where KVM has no MSR 0x10a (a host without VT-x or AMD-V) QEMU 7.2 offers it all the same, and aborts.
QEMU_CPU = "host,arch-capabilities=off"
SAID = re.compile(r"IOS (\d+) TICKS (\d+)")


@dataclass(frozen=True, slots=True)
class Payload:
    """A guest and its words; `khz` is the rate of its time stamp counter."""

    elf: Path
    cmdline: str
    khz: int

    def rate(self, output: str) -> float:
        """Operations a second, from what the payload printed."""
        said = SAID.search(output)
        if said is None:
            raise RuntimeError(f"{self.elf.name} {self.cmdline} said:\n{output}")
        return int(said[1]) / int(said[2]) * self.khz * 1000


def payload(name: str, /, *, directory: Path = HERE, **words: int) -> Payload:
    """The guest NAME.c of a directory, this one."""
    khz = tsc_khz()
    cmdline = " ".join(f"{key}={value}" for key, value in {**words, "khz": khz}.items())
    return Payload(build(directory / f"{name}.c"), cmdline, khz)


def run_ours(guest: Payload, devices: Sequence[DeviceConfig] = ()) -> float:
    """By our VMM, in this process."""
    with Bare(guest.elf, guest.cmdline, devices=devices) as machine:
        return guest.rate(machine.finish())


def run_qemu(guest: Payload, socket: Path | None = None) -> float:
    """By QEMU's microvm on KVM, with a vhost-user disk at `socket`."""
    machine = "microvm,accel=kvm,memory-backend=ram,pcie=on,rtc=off,pit=off,pic=off"
    command = ["qemu-system-x86_64", "-M", machine, "-cpu", QEMU_CPU, "-m", "64"]
    command += ["-object", "memory-backend-memfd,id=ram,size=64M,share=on"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]
    command += ["-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(guest.elf), "-append", guest.cmdline]
    if socket is not None:
        command += ["-chardev", f"socket,id=disk,path={socket}"]
        command += ["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,disable-legacy=on"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return guest.rate(done.stdout + done.stderr)


def run_peer(guest: Payload, *options: str) -> float:
    """By the VMM in C."""
    command = [str(build_peer()), str(guest.elf), guest.cmdline, *options]
    return guest.rate(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def build_peer() -> Path:
    """Compile peer.c if it is newer than what is there."""
    source, program = HERE / "peer.c", Path(gettempdir()) / f"nagaya-peer-{os.getuid()}"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def tsc_khz() -> int:
    """How fast a guest's time stamp counter goes."""
    with Kvm() as system, Vm(system) as vm:
        vcpu = vm.create_vcpu(0)
        try:
            return ioctl(vcpu, kvm.KVM_GET_TSC_KHZ)
        finally:
            os.close(vcpu)
