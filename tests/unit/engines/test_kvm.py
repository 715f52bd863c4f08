"""What the kvm engine refuses, and what it tells a machine's process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nagaya.engines.engine import Exit, ExitReason, Machine
from nagaya.engines.exits import Status, classify_kvm
from nagaya.engines.kvm import (
    OVERHEAD,
    OVERHEAD_SHARE,
    KvmEngine,
    host_memory,
    launch_plan,
    machine_config,
)
from nagaya.errors import UnavailableError, UnsupportedError
from nagaya.kernel import Kernel
from nagaya.kvm.config import DeviceConfig, MachineConfig
from nagaya.kvm.ending import Ending, Reason
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup
from nagaya.spec import MachineSpec


@pytest.fixture
def own(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "r", tmp_path / "s", tmp_path / "c")


def machine_of(paths: Paths, *devices: str, **fields: Any) -> Machine:
    spec = MachineSpec(name="web", engine="kvm", **fields)
    kernel = Kernel("kvm", "/kernels/kvm/vmlinux", cmdline="pvpanic=1")
    return Machine("0123456789ab", spec, paths.machine("0123456789ab"), 70000, 70000, kernel, devices)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("cpus", {"cpus": 1024}),
        ("memory.size", {"memory": 16 * 2**20 + 512}),
        ("memory.max", {"memory": {"size": "512MiB", "max": "513MiB"}}),
        ("memory.max", {"memory": {"size": "16MiB", "max": "16MiB"}}),
        ("memory.limit", {"memory": {"size": "512MiB", "limit": "63MiB"}}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(own: Paths, field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f"web: {field}: .* engine kvm") as caught:
        KvmEngine(own).check(MachineSpec(name="web", **fields))
    assert caught.value.facts["field"] == field


@pytest.mark.kvm
def test_several_cpus_are_possible(own: Paths) -> None:
    KvmEngine(own).check(MachineSpec(name="web", cpus=4, memory="8GiB", disks=({"size": "1GiB"},)))


def test_a_machine_is_told_paths_inside_its_jail(own: Paths) -> None:
    disks = ({"size": "1GiB"}, {"size": "1GiB"})
    machine = machine_of(own, "disk0", "disk1", "console", "rng", "balloon0", cpus=2, disks=disks)
    config = machine_config(machine)
    jail = machine.paths.jail
    assert config.devices == (
        DeviceConfig("disk0", "blk", f"{jail}/disk0.sock"),
        DeviceConfig("disk1", "blk", f"{jail}/disk1.sock"),
        DeviceConfig("console", "console", f"{jail}/console.sock"),
        DeviceConfig("rng", "rng", f"{jail}/rng.sock"),
        DeviceConfig("balloon0", "balloon", f"{jail}/balloon0.sock"),
    )
    assert (config.cpus, config.serial) == (2, f"{jail}/serial.sock")
    assert (config.kernel, config.initrd) == ("/kernel", "")
    assert config.cmdline == "pvpanic=1 root=/dev/vda rw console=ttyS0 quiet nagaya.hostname=web"
    assert config.uuid == machine_config(machine).uuid
    assert MachineConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("asked", "fast", "told"),
    [
        ("host", True, "host"),
        ("host", False, "x86-64-v1"),  # a kernel that KVM emulates needs no more
        ("baseline", True, "baseline"),
        ("baseline", False, "baseline"),
    ],
)
def test_the_cpu_is_what_was_asked_for(own: Paths, asked: str, fast: bool, told: str) -> None:
    machine = machine_of(own, cpu_model=asked)
    assert machine_config(machine, fast=fast).cpu_model == told


def test_memory_that_may_be_plugged_is_behind_what_the_machine_starts_with(own: Paths) -> None:
    machine = machine_of(own, "mem0", memory={"size": "512MiB", "max": "2GiB"})
    config = machine_config(machine)
    assert (config.memory, config.hot_memory) == (512 * 2**20, 1536 * 2**20)
    assert config.devices[0].kind == "mem"
    assert host_memory(machine.spec) == 512 * 2**20 + 2**31 // OVERHEAD_SHARE + OVERHEAD


def test_a_read_only_root_is_mounted_so_and_the_users_words_are_last(own: Paths) -> None:
    disks = ({"size": "1GiB", "read_only": True},)
    config = machine_config(machine_of(own, "disk0", disks=disks, boot={"cmdline": "quiet=no x"}))
    assert config.cmdline.split()[1:3] == ["root=/dev/vda", "ro"]
    assert config.cmdline.endswith(" nagaya.hostname=web quiet=no x")
    assert config.serial == ""


def test_a_kernel_whose_ring_0_is_emulated_gets_what_it_needs(own: Paths) -> None:
    config = machine_config(machine_of(own), fast=False)
    assert config.cpu_model == "x86-64-v1"
    assert config.cmdline.startswith("clearcpuid=308,151 noxsave ")
    assert machine_config(machine_of(own)).cpu_model == "host"


def test_an_initrd_that_is_missing_is_named(own: Paths) -> None:
    machine = machine_of(own, boot={"initrd": "/no/such/initrd"})
    with pytest.raises(UnavailableError, match="/no/such/initrd"):
        launch_plan(machine, Cgroup({}), Path("/kernel"))


def test_the_plan_opens_the_device_and_the_monitor_before_the_jail_closes(own: Paths) -> None:
    machine = machine_of(own, "console")
    plan = launch_plan(machine, Cgroup({}), Path("/kernels/kvm/vmlinux"))
    assert plan.opens == {"kvm": "/dev/kvm"}
    assert plan.listens == {"qmp": str(machine.paths.qmp_socket)}
    assert (plan.executable, plan.ram_bytes) == ("", 0)
    assert not any(bind.writable for bind in plan.binds)
    assert {bind.target for bind in plan.binds} == {str(machine.paths.jail), "/kernel"}


def test_a_panic_is_told_in_the_guests_own_words() -> None:
    log = Ending(Reason.PANIC, "the guest's kernel panicked").to_line()
    console = "[    1.2] Kernel panic - not syncing: VFS: no\x1b root\r\n[    1.3] ---[ end\n"
    found = classify_kvm(Status(20, None), log, console=console, killed=False, oom_kills=0)
    assert found == Exit(ExitReason.PANIC, "VFS: no root")


@pytest.mark.parametrize(
    ("status", "log", "killed", "oom", "expected"),
    [
        (Status(0, None), Ending(Reason.POWEROFF).to_line(), False, 0, Exit(ExitReason.POWEROFF)),
        (
            Status(10, None),
            Ending(Reason.RESET, "i8042").to_line(),
            False,
            0,
            Exit(ExitReason.REBOOT, "i8042"),
        ),
        (Status(30, None), Ending(Reason.FAULT, "rip").to_line(), False, 0, Exit(ExitReason.FAULT, "rip")),
        (Status(20, None), Ending(Reason.PANIC).to_line(), False, 0, Exit(ExitReason.PANIC)),
        (Status(1, None), Ending(Reason.FAILED, "x").to_line(), False, 0, Exit(ExitReason.CRASHED, "x")),
        (Status(0, None), Ending(Reason.QUIT).to_line(), True, 0, Exit(ExitReason.KILLED)),
        (None, Ending(Reason.FAULT, "rip").to_line(), False, 0, Exit(ExitReason.FAULT, "rip")),
        (None, "", True, 0, Exit(ExitReason.KILLED)),
        (None, "", False, 0, Exit(ExitReason.UNKNOWN, "it ended while nobody could see its status")),
        (Status(None, 9), "", True, 0, Exit(ExitReason.KILLED)),
        (Status(None, 9), "", False, 0, Exit(ExitReason.KILLED, "SIGKILL, not sent by Nagaya")),
        (Status(None, 11), "oops", False, 0, Exit(ExitReason.CRASHED, "signal SIGSEGV, its last line: oops")),
        (Status(7, None), Ending(Reason.POWEROFF).to_line(), False, 0, None),
    ],
)
def test_every_end_has_its_reason(
    status: Status | None, log: str, killed: bool, oom: int, expected: Exit | None
) -> None:
    found = classify_kvm(status, f"a line\n{log}\n", killed=killed, oom_kills=oom)
    if expected is None:
        assert found.reason is ExitReason.CRASHED, "a line that does not match the status is not believed"
    else:
        assert found == expected
