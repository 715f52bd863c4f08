"""The command line and the jail's content follow from the machine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from nagaya.engines import command
from nagaya.engines.engine import Machine
from nagaya.errors import UnavailableError, UnsupportedError
from nagaya.kernel import Kernel
from nagaya.paths import MachinePaths
from nagaya.resources.cgroups import Cgroup
from nagaya.spec import Boot, Disk, MachineSpec

PATHS = MachinePaths(Path("/run/n/machines/a"), Path("/var/n/machines/a"))
SPEC = MachineSpec(
    name="web", memory="512MiB", disks=(Disk(image="debian"),), boot=Boot(cmdline="loglevel=7 x=y")
)
KERNEL = Kernel("uml", "/k/vmlinux", cmdline="lpj=1000")
MACHINE = Machine("a", SPEC, PATHS, 61000, 61000, KERNEL, ("disk0", "disk1", "console", "rng", "balloon0"))


def test_the_command_line_in_order() -> None:
    jail = "/run/n/machines/a/jail"
    assert command.command_line(MACHINE) == (
        "mem=524288K",
        "umid=0",
        "uml_dir=/ram/",
        "con=null",
        "lpj=1000",
        f"virtio_uml.device={jail}/disk0.sock:2",
        f"virtio_uml.device={jail}/disk1.sock:2",
        f"virtio_uml.device={jail}/console.sock:3",
        f"virtio_uml.device={jail}/rng.sock:4",
        f"virtio_uml.device={jail}/balloon0.sock:5",
        "root=/dev/vda",
        "rw",
        "console=hvc0",
        "quiet",
        "nagaya.hostname=web",
        "loglevel=7",
        "x=y",
    )


def test_a_read_only_root_and_an_initrd_are_said() -> None:
    spec = SPEC.model_copy(update={"disks": (Disk(image="debian", read_only=True),)})
    words = command.command_line(
        dataclasses.replace(MACHINE, spec=spec, kernel=Kernel("k", "/k", initrd="/i"))
    )
    assert "ro" in words
    assert "initrd=/initrd" in words


def test_no_disk_means_no_root() -> None:
    words = command.command_line(dataclasses.replace(MACHINE, spec=MachineSpec(name="bare")))
    assert not [word for word in words if word.startswith("root=")]


def test_cpuinfo_shows_one_cpu_and_no_host() -> None:
    text = (
        "processor\t: 0\nflags\t\t: fpu avx2\ncache_alignment\t: 64\n\nprocessor\t: 1\nflags\t\t: fpu avx2\n"
    )
    assert command.cpuinfo(text) == "flags\t\t: fpu avx2\ncache_alignment\t: 64\n"


def test_the_bounds_of_a_machine_contain_its_guest() -> None:
    assert command.host_memory(MACHINE) >= SPEC.memory.size + 64 * 2**20
    assert command.max_pids(MACHINE) >= 4096


def test_a_dynamic_executable_brings_its_libraries() -> None:
    executable = Path(sys.executable).resolve()
    libraries = command.shared_libraries(str(executable), executable.stat().st_mtime_ns)
    assert any("libc.so" in library for library in libraries)
    assert all(Path(library).is_file() for library in libraries)


def test_a_static_executable_brings_nothing() -> None:
    assert command.shared_libraries("/bin/busybox", 0) == ()


def test_what_is_no_executable_is_refused(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_text("not a kernel")
    machine = dataclasses.replace(MACHINE, kernel=Kernel("odd", str(kernel)))
    with pytest.raises(UnavailableError, match=r"kernel odd: .*not a 64-bit"):
        command.launch_plan(machine, Cgroup({}), None)


def test_a_missing_initrd_is_named(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"boot": Boot(initrd=str(tmp_path / "none"))})
    machine = dataclasses.replace(MACHINE, spec=spec, kernel=Kernel("k", "/bin/busybox"))
    with pytest.raises(UnavailableError, match=r"boot\.initrd: there is no file"):
        command.launch_plan(machine, Cgroup({}), None)


def test_debians_kernel_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = dataclasses.replace(
        MACHINE, kernel=Kernel("uml-debian", "/bin/busybox", "package user-mode-linux 6.1")
    )
    monkeypatch.setattr(command, "_has_amx", lambda: True)
    with pytest.raises(UnsupportedError, match="AMX") as caught:
        command.launch_plan(machine, Cgroup({}), None)
    assert "nagaya kernel build uml" in caught.value.hint
    monkeypatch.setattr(command, "_has_amx", lambda: False)
    assert command.launch_plan(machine, Cgroup({}), None).executable == "/linux"


def test_a_machine_gets_little_and_writes_only_its_memory() -> None:
    plan = command.launch_plan(
        dataclasses.replace(MACHINE, kernel=Kernel("k", "/bin/busybox")), Cgroup({}), 1
    )
    assert [bind.target for bind in plan.binds] == ["/run/n/machines/a/jail", "/linux"]
    assert not any(bind.writable for bind in plan.binds)
    assert plan.rlimits["core"] == 0
    assert plan.cpu == 1
    assert len(plan.seccomp) == 2
