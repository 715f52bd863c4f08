"""Debian's own kernel, as it is in the package: a bzImage for clouds, which nobody built for us.

Where the host emulates ring 0 it comes as far as its high-resolution timers: from then on its tick of 250 Hz
takes more time than there is. Until there it has read the tables and walked the bus. With VT-x or AMD-V it
goes on until it misses a root file system.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.kvm.ending import Reason
from nagaya.kvm.probe import probe
from nagaya.kvm.unpack import unpack
from nagaya.paths import Paths
from nagaya.testing.bare import Bare

pytestmark = pytest.mark.kvm

PACKAGE = "linux-image-cloud-amd64"
MEMORY = 256 << 20
# What an emulated ring 0 lacks, and self-tests that take a minute there.
CMDLINE = (
    "console=ttyS0 clearcpuid=308,151 noxsave mitigations=off cryptomgr.notests nowatchdog"
    " no_timer_check panic=-1"
)
FURTHEST = "clocksource: Switched to clocksource kvm-clock"
BOOT_S = 1200  # two minutes on an idle host
STANDSTILL_S = 10


@pytest.fixture(scope="module")
def vmlinuz(shared_paths: Paths) -> Path:
    """The kernel out of the package that apt downloads, installed nowhere; kept in the cache."""
    depends = subprocess.run(
        ["apt-cache", "depends", PACKAGE], capture_output=True, text=True, check=True
    ).stdout
    (package,) = re.findall(r"Depends: (linux-image-\S+-cloud-amd64)$", depends, re.MULTILINE)
    kept: Path = shared_paths.cache / "cloud-kernel" / package
    if not kept.exists():
        partial = kept.with_name(f"{package}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["apt-get", "-q", "download", package], cwd=partial, check=True)
        (archive,) = partial.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, partial / "root"], check=True)
        (kernel,) = partial.glob("root/boot/vmlinuz-*")
        kernel.rename(kept)
        shutil.rmtree(partial)
    return kept


@pytest.fixture(scope="module")
def guest(vmlinuz: Path, shared_paths: Paths) -> Iterator[Bare]:
    """The machine, when the kernel is as far as it comes on every host."""
    kernel = unpack(vmlinuz, shared_paths.cache / "unpacked")
    with Bare(kernel, CMDLINE, memory=MEMORY, cpu_model="x86-64-v1") as guest:
        guest.said(FURTHEST, BOOT_S)
        yield guest


def test_as_it_is_its_own_stub_runs(vmlinuz: Path) -> None:
    """Entered by the 64-bit protocol; unpacking itself takes the stub minutes where ring 0 is emulated."""
    cmdline = "earlyprintk=ttyS0 nokaslr"
    with Bare(vmlinuz, cmdline, memory=MEMORY, cpu_model="x86-64-v1") as guest:
        guest.said("KASLR disabled: 'nokaslr' on cmdline.", 120)


def test_it_finds_our_tables(guest: Bare) -> None:
    assert re.findall(r"ACPI: (\w{4}) 0x\w+ \w+ \(v\d+ NAGAYA", guest.output)[:2] == ["RSDP", "XSDT"]
    assert not re.search(r"ACPI (BIOS )?(Error|Warning)", guest.output)


def test_it_drives_pci_express_itself(guest: Bare) -> None:
    assert "_OSC: OS now controls [PCIeHotplug PME AER PCIeCapability]" in guest.output
    assert "pci 0000:00:00.0: [1b36:0008] type 00 class 0x060000" in guest.output


def test_where_it_stops(guest: Bare) -> None:
    if probe().native:
        guest.wait(lambda: guest.ending is not None, 120)
        assert guest.ending is not None
        assert guest.ending.reason is Reason.PANIC
        assert "Unable to mount root fs" in guest.output
        return
    time.sleep(STANDSTILL_S)
    assert guest.ending is None
    after = guest.output.partition(FURTHEST)[2]
    assert "Kernel panic" not in after
    assert "NET: Registered PF_INET" not in after
