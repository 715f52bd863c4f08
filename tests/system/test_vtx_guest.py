"""Whole guests on the kvm engine, by the command line: what only a host with VT-x or AMD-V can run.

`make test-vtx` runs these. On other hosts `tests/guest/test_linux.py` goes as far as an emulated ring 0 can.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

pytestmark = [
    getattr(pytest.mark, "vt-x"),
    pytest.mark.kvm,
    pytest.mark.root,
    pytest.mark.images,
    pytest.mark.usefixtures("kvm_kernel", "busybox_image", "debian_image"),
]

KVM = ("--engine", "kvm")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Spawn = Callable[..., "pexpect.spawn[bytes]"]


def start(cli: Cli, image: str, name: str, *options: str) -> None:
    """A machine whose guest is up."""
    created = cli("create", image, "--name", name, *KVM, *options)
    assert created.returncode == 0, created.stderr
    started = cli("start", name, "--wait")
    assert started.stdout == f"{name} is ready\n", started.stderr + cli("logs", name).stdout


def inside(cli: Cli, name: str, script: str) -> str:
    """What a shell script prints in the guest."""
    done = cli("exec", name, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(cli: Cli, name: str) -> dict[str, object]:
    """What `nagaya show` says."""
    body: dict[str, object] = json.loads(cli("show", name, "--format", "json").stdout)
    return body


def test_run_is_the_guests_command(cli: Cli) -> None:
    done = cli("run", "busybox", *KVM, "--", "sh", "-c", "cat; echo oops >&2; exit 7", stdin="hello")
    assert (done.returncode, done.stdout) == (7, "hello")
    assert done.stderr.endswith("oops\n")


def test_busybox_logs_in_on_its_serial_console(cli: Cli, spawn: Spawn) -> None:
    start(cli, "busybox", "b1", "--memory", "128MiB")
    console = spawn("console", "b1")
    console.expect("ctrl-] detaches")
    console.send("\r")
    console.expect("# ")
    console.send("echo is $((40 + 2)) on $(tty)\r")
    console.expect("is 42 on /dev/ttyS0")
    console.send("\x1d")
    console.expect("Detached from b1")


def test_debian_comes_to_its_login_and_is_healthy(cli: Cli, spawn: Spawn) -> None:
    start(cli, "debian", "d1", "--memory", "512MiB", "--cpus", "2")
    assert inside(cli, "d1", "systemctl is-system-running --wait") == "running\n"
    assert inside(cli, "d1", "hostname; nproc; systemd-detect-virt").split() == ["d1", "2", "kvm"]
    assert not re.search("BUG:|WARNING: CPU|Call Trace|ACPI .*Error", inside(cli, "d1", "dmesg"))
    console = spawn("console", "d1")
    console.expect("ctrl-] detaches")
    console.send("\r")
    console.expect("root@d1")
    console.send("\x1d")


def test_a_guest_finds_the_machine_that_was_asked_for(cli: Cli) -> None:
    start(cli, "debian", "d1", "--memory", "1GiB", "--cpus", "4")
    memory = int(inside(cli, "d1", "awk '/MemTotal/ {print $2}' /proc/meminfo"))
    assert 0.9 * (1 << 20) < memory <= 1 << 20
    assert inside(cli, "d1", "cat /sys/devices/system/cpu/online") == "0-3\n"
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert inside(cli, "d1", f"cat {clock}").strip() in ("kvm-clock", "tsc")
    devices = inside(cli, "d1", "cat /sys/bus/pci/devices/*/vendor").split()
    assert devices.count("0x1af4") >= 3
    assert "FACP" in inside(cli, "d1", "ls /sys/firmware/acpi/tables").split()


def test_every_device_interrupts_by_message(cli: Cli) -> None:
    start(cli, "debian", "d1", "--memory", "512MiB")
    interrupts = inside(cli, "d1", "grep virtio /proc/interrupts").splitlines()
    assert interrupts
    assert all("PCI-MSI" in line for line in interrupts)


def test_what_is_written_is_there_after_a_stop(cli: Cli) -> None:
    start(cli, "busybox", "b1", "--memory", "128MiB")
    digest = inside(cli, "b1", "head -c 4000000 /dev/urandom >/kept; sync; sha256sum /kept")
    assert cli("stop", "b1").stdout == "b1 is stopped\n"
    assert cli("start", "b1", "--wait").stdout == "b1 is ready\n"
    assert inside(cli, "b1", "sha256sum /kept") == digest


TWO_DISKS = """\
machines:
  d1:
    engine: kvm
    memory: 512MiB
    disks:
      - image: debian
      - size: 64MiB
"""


def test_a_second_disk_takes_a_file_system(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(TWO_DISKS)
    done = cli("up", "-f", str(file))
    assert done.returncode == 0, done.stderr
    steps = (
        "mkfs.ext4 -q /dev/vdb",
        "mount /dev/vdb /mnt",
        "cp /bin/bash /mnt",
        "umount /mnt",
        "e2fsck -fn /dev/vdb >/dev/null 2>&1",
        "mount /dev/vdb /mnt",
        "cmp /bin/bash /mnt/bash",
    )
    assert inside(cli, "d1", " && ".join((*steps, "echo good"))) == "good\n"


def test_a_polite_stop_is_the_power_button(cli: Cli) -> None:
    """Without the agent, which would be asked first."""
    start(cli, "debian", "d1", "--memory", "512MiB")
    cli("exec", "d1", "--", "systemctl", "--no-block", "stop", "qemu-guest-agent")
    assert cli("stop", "d1").stdout == "d1 is stopped\n"
    assert "killed" not in str(shown(cli, "d1")["cause"])


def test_a_reboot_inside_is_a_new_start(cli: Cli) -> None:
    start(cli, "debian", "d1", "--memory", "512MiB")
    before = inside(cli, "d1", "cat /proc/sys/kernel/random/boot_id")
    cli("exec", "d1", "--", "systemctl", "--no-block", "reboot")
    deadline = time.monotonic() + 120
    while True:
        done = cli("exec", "d1", "--", "cat", "/proc/sys/kernel/random/boot_id")
        if done.returncode == 0 and done.stdout != before:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(1)


def test_a_panic_is_the_cause_that_is_shown(cli: Cli) -> None:
    start(cli, "busybox", "b1", "--memory", "128MiB")
    cli("exec", "b1", "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    deadline = time.monotonic() + 60
    while shown(cli, "b1")["state"] not in ("failed", "stopped"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "panic" in str(shown(cli, "b1")["cause"])


def test_a_paused_guest_stands_still_and_goes_on(cli: Cli) -> None:
    start(cli, "busybox", "b1", "--memory", "128MiB")
    inside(cli, "b1", "(while :; do date +%s >>/ticks; sleep 1; done) >/dev/null 2>&1 &")
    time.sleep(3)
    assert cli("pause", "b1").returncode == 0
    time.sleep(3)
    assert cli("resume", "b1").returncode == 0
    time.sleep(2)
    ticks = [int(line) for line in inside(cli, "b1", "cat /ticks").split()]
    assert len(ticks) >= 4
    assert "soft lockup" not in inside(cli, "b1", "dmesg")


def test_computing_is_as_fast_as_on_the_host(cli: Cli) -> None:
    """Not a benchmark (benches/kvm has those): only that nothing is emulated."""
    start(cli, "debian", "d1", "--memory", "512MiB")
    script = "i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done"
    begin = time.monotonic()
    subprocess.run(["sh", "-c", script], check=True)
    host = time.monotonic() - begin
    timed = f"s=$(date +%s%N); {script}; e=$(date +%s%N); echo $((e - s))"
    assert int(inside(cli, "d1", timed)) < 5e9 * host
