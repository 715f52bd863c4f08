"""Real kernels on machines of ours: what they find, and that it works.

Their init executes no system call, because where the host emulates ring 0 a kernel that is unaware of it gets
none (docs/engines.md); so these tests are the same on every host. A boot takes up to a minute there, so one
boot serves several tests, and they only read what it printed or disturb it in ways that the others survive.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nagaya import _core
from nagaya.abi import elf
from nagaya.abi.boot import XEN_ELFNOTE_PHYS32_ENTRY
from nagaya.hw import layout
from nagaya.hw.ged import Ged
from nagaya.hw.vmgenid import GenerationId
from nagaya.kernel import Kernel
from nagaya.kvm.config import DeviceConfig
from nagaya.kvm.ending import Reason
from nagaya.kvm.kernelfile import Protocol, parse
from nagaya.plane import worker
from nagaya.testing.bare import Bare
from nagaya.testing.scratch import make_directory

pytestmark = pytest.mark.kvm

MEMORY = 256 << 20
# What an emulated ring 0 needs: KVM's emulator knows no STAC, CLAC, POPCNT, CMPXCHG16B and XSAVE.
CPU_MODEL = "x86-64-v1"
CMDLINE = "console=ttyS0 clearcpuid=308,151 noxsave mitigations=off"
BOOT_S = 280  # a minute on an idle host
STAYS = "jmp _start"
FAULTS = "mov 0, %eax"


@dataclass(frozen=True)
class Linux:
    """A kernel that runs its init, and where its files are."""

    guest: Bare
    plane: Plane

    @property
    def log(self) -> str:
        return self.guest.output


class Plane:
    """The plane's devices, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._core = _core.Plane([sys.executable, "-I", "-S", str(worker.__file__), str(_core.__file__)])

    def disk(self, name: str, image: Path) -> DeviceConfig:
        """A raw disk."""
        path = self.directory / f"{name}.sock"
        config = {
            "driver": "blk",
            "id": name,
            "worker": "disk",
            "queues": 1,
            "queue_size": 256,
            "read_only": False,
            "serial": name,
            "direct": False,
            "layers": [{"format": "raw"}],
        }
        with socket.socket(socket.AF_UNIX) as listener, image.open("r+b") as file:
            listener.bind(str(path))
            listener.listen()
            self._core.device_add(json.dumps(config), [listener.fileno(), file.fileno()])
        return DeviceConfig(name, "blk", str(path))

    def balloon(self, name: str) -> DeviceConfig:
        """An empty balloon, whose guest is asked for statistics every second."""
        path = self.directory / f"{name}.sock"
        config = {"driver": "balloon", "id": name, "worker": "balloons", "stats_ms": 1000}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            self._core.device_add(json.dumps(config), [listener.fileno()])
        return DeviceConfig(name, "balloon", str(path))

    def set_balloon(self, name: str, size: int) -> None:
        """Ask for `size` bytes."""
        self._core.set_balloon(name, json.dumps({"size": size}))

    def balloon_status(self) -> dict[str, Any]:
        """What the plane knows of the only balloon."""
        (row,) = json.loads(self._core.query_balloons())
        return dict(row)

    def status(self, name: str) -> dict[str, int]:
        """What the plane counted of a disk."""
        (found,) = (one for one in json.loads(self._core.query())["devices"] if one["id"] == name)
        return dict(found)

    def close(self) -> None:
        """End the workers."""
        self._core.close()


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    """A plane of this module's own."""
    directory = make_directory()
    plane = Plane(directory)
    yield plane
    plane.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with an init that runs for ever and asks its kernel for nothing."""
    top = tmp_path_factory.mktemp("root")
    tree = top / "tree"
    for name in ("sbin", "dev"):
        (tree / name).mkdir(parents=True)
    (tree / "sbin/init").write_bytes(program(top, STAYS))
    (tree / "sbin/init").chmod(0o755)
    image = top / "root.raw"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, image, "16M"], check=True)
    return image


def program(directory: Path, instruction: str) -> bytes:
    """An executable of one instruction."""
    source, built = directory / "init.S", directory / "init"
    source.write_text(f".globl _start\n_start: {instruction}\n")
    subprocess.run(["gcc", "-nostdlib", "-static", "-o", built, source], check=True)
    return built.read_bytes()


@pytest.fixture(scope="module")
def linux(kvm_kernel: Kernel, plane: Plane, root: Path) -> Iterator[Linux]:
    """Two vCPUs, entered by PVH, a root on a disk of the plane; it runs its init."""
    disk = plane.disk("disk0", root)
    with Bare(
        Path(kvm_kernel.path),
        f"{CMDLINE} root=/dev/vda rw",
        devices=[disk, plane.balloon("balloon0")],
        memory=MEMORY,
        cpus=2,
        cpu_model=CPU_MODEL,
    ) as guest:
        guest.said("Run /sbin/init as init process", BOOT_S)
        yield Linux(guest, plane)


def test_every_cpu_comes_up(linux: Linux) -> None:
    assert "smp: Brought up 1 node, 2 CPUs" in linux.log
    assert "smpboot: Allowing 2 CPUs, 0 hotplug CPUs" in linux.log


def test_it_has_the_hypervisors_clock(linux: Linux) -> None:
    assert "Hypervisor detected: KVM" in linux.log
    assert "clocksource: Switched to clocksource kvm-clock" in linux.log


def test_memory_is_as_it_was_told(linux: Linux) -> None:
    assert f"BIOS-e820: [mem 0x0000000000100000-{MEMORY - 1:#018x}] usable" in linux.log
    ecam = f"{layout.ECAM:#018x}-{layout.ECAM + layout.ECAM_SIZE - 1:#018x}"
    assert f"BIOS-e820: [mem {ecam}] reserved" in linux.log


def test_it_finds_our_acpi_tables_and_likes_them(linux: Linux) -> None:
    found = re.findall(r"ACPI: (\w{4}) 0x\w+ \w+ \(v\d+ NAGAYA", linux.log)
    assert found == ["RSDP", "XSDT", "FACP", "DSDT", "APIC", "MCFG", "SPCR"]
    assert not re.search(r"ACPI (BIOS )?(Error|Warning)|ACPI: .*(rror|nvalid)", linux.log)


def test_configuration_space_is_used_through_ecam(linux: Linux) -> None:
    assert f"PCI: MMCONFIG for domain 0000 [bus 00-ff] at [mem {layout.ECAM:#x}" in linux.log
    assert re.search(r"PCI: MMCONFIG at \[mem .*\] reserved in", linux.log)
    assert "not using MMCONFIG" not in linux.log


def test_pci_express_is_its_own_to_drive(linux: Linux) -> None:
    assert "_OSC: OS now controls [PCIeHotplug" in linux.log
    assert "pci 0000:00:00.0: [1b36:0008] type 00 class 0x060000" in linux.log
    assert re.search(r"pci 0000:00:01.0: \[1af4:1042\] type 00", linux.log)
    assert re.search(r"pcieport 0000:00:0\d.0: pciehp: Slot #1 AttnBtn", linux.log)


def test_its_serial_port_is_a_16550a_with_an_interrupt(linux: Linux) -> None:
    assert re.search(r"ttyS0 at I/O 0x3f8 \(irq = \d+, base_baud = 115200\) is a 16550A", linux.log)


def test_the_clock_of_the_board_is_read(linux: Linux) -> None:
    assert re.search(r"rtc_cmos 00:0\d: registered as rtc0", linux.log)
    assert "broken or not accessible" not in linux.log


def test_its_root_is_a_disk_of_the_plane(linux: Linux) -> None:
    assert "virtio_blk virtio0: [vda] 32768 512-byte logical blocks" in linux.log
    assert "VFS: Mounted root (ext4 filesystem)" in linux.log
    status = linux.plane.status("disk0")
    assert status["reads"] > 0
    assert status["errors"] == 0


def test_its_balloon_is_filled_and_emptied(linux: Linux) -> None:
    device = linux.guest.machine.devices["balloon0"]
    size = 4 << 20  # a thousand pages: an emulated kernel takes a while for each
    for wanted in (size, 0):
        linux.plane.set_balloon("balloon0", wanted)
        end = time.monotonic() + BOOT_S
        while linux.plane.balloon_status()["actual"] != wanted:
            assert time.monotonic() < end, linux.plane.balloon_status()
            if select.select([device.backend.fd], [], [], 0.05)[0]:  # it is asked bite by bite
                linux.guest.machine.attend(device)
    status = linux.plane.balloon_status()
    assert (status["inflated"], status["deflated"], status["taken_back"]) == (size, size, 0)
    assert status["stats"]["free"] < status["stats"]["total"] < MEMORY
    assert status["reported"] > MEMORY // 2  # most of it is free


def test_nothing_looks_wrong(linux: Linux) -> None:
    for words in ("BUG:", "WARNING:", "Oops", "rcu_sched", "Call Trace", "unable to handle", "nobody cared"):
        assert words not in linux.log


def event_device(linux: Linux) -> Ged:
    """The machine's."""
    (ged,) = (one.device for one in linux.guest.machine.mmio.ranges if one.base == layout.GED)
    assert isinstance(ged, Ged)
    return ged


def test_another_generation_makes_it_reseed(linux: Linux) -> None:
    GenerationId(linux.guest.machine.memory, event_device(linux)).renew(announce=True)
    linux.guest.said("random: crng reseeded due to virtual machine fork", 60)


def test_its_acpi_hears_the_power_button(linux: Linux) -> None:
    assert "ACPI: button: Power Button [PWRB]" in linux.log
    ged = event_device(linux)
    linux.guest.machine.power_down()
    deadline = time.monotonic() + 60
    while ged.pending:
        assert time.monotonic() < deadline, "its event method was not called"
        time.sleep(0.05)


def test_a_disk_is_plugged_and_unplugged(linux: Linux, tmp_path: Path) -> None:
    image = tmp_path / "spare.raw"
    image.touch()
    os.truncate(image, 1 << 20)
    linux.guest.machine.plug(linux.plane.disk("disk1", image))
    linux.guest.said("[vdb] 2048 512-byte logical blocks", 60)
    linux.guest.machine.unplug("disk1")
    linux.guest.wait(lambda: linux.guest.ejected_ids == ["disk1"], 60)
    linux.guest.machine.remove("disk1")


def test_it_goes_on_after_a_pause(linux: Linux, tmp_path: Path) -> None:
    linux.guest.machine.pause()
    linux.guest.machine.resume()
    image = tmp_path / "spare.raw"
    image.touch()
    os.truncate(image, 2 << 20)
    linux.guest.machine.plug(linux.plane.disk("disk2", image))
    linux.guest.said("4096 512-byte logical blocks", 60)
    assert "soft lockup" not in linux.log


def without_pvh(kernel: Path, copy: Path) -> Path:
    """A copy whose note is another one: it is entered by the Linux protocol."""
    content = bytearray(kernel.read_bytes())
    note = elf.ElfNote(n_namesz=4, n_descsz=8, n_type=XEN_ELFNOTE_PHYS32_ENTRY)
    at = content.index(bytes(note) + b"Xen\0")
    content[at + elf.ElfNote.n_type.offset] = 0x7F
    copy.write_bytes(content)
    return copy


def archive(*files: tuple[str, int, bytes]) -> bytes:
    """A cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst): path, mode, content."""
    parts = b""
    for number, (name, mode, content) in enumerate((*files, ("TRAILER!!!", 0, b""))):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += head.ljust(len(head) + 3 & ~3, b"\0") + content.ljust(len(content) + 3 & ~3, b"\0")
    return parts


def test_the_64_bit_protocol_an_initramfs_and_virtio_over_mmio_lead_to_init_whose_end_is_a_panic(
    kvm_kernel: Kernel, plane: Plane, root: Path, tmp_path: Path
) -> None:
    """One boot, for it takes a while: all that the other one does differently."""
    kernel = without_pvh(Path(kvm_kernel.path), tmp_path / "vmlinux")
    with kernel.open("rb") as file:
        assert parse(file, str(kernel)).protocol is Protocol.LINUX
    initrd = tmp_path / "initrd"
    initrd.write_bytes(archive(("dev", 0o40755, b""), ("init", 0o100755, program(tmp_path, FAULTS))))
    disk = plane.disk("small", Path(shutil.copy(root, tmp_path)))
    with Bare(
        kernel,
        CMDLINE,
        devices=[disk],
        transport="mmio",
        memory=MEMORY,
        cpu_model=CPU_MODEL,
        initrd=str(initrd),
    ) as guest:
        guest.said("Run /init as init process", BOOT_S)
        assert f"Command line: {CMDLINE}\n" in guest.output.replace("\r", "")
        assert "Unpacking initramfs" in guest.output
        assert "virtio_blk virtio0: [vda] 32768 512-byte logical blocks" in guest.output
        assert "PCI: System does not support PCI" in guest.output
        guest.wait(lambda: guest.ending is not None, 60)
        assert "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b" in guest.output
        assert guest.ending is not None
        assert guest.ending.reason is Reason.PANIC
