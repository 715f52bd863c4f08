"""Machines of the kvm engine under the real daemon: commands, and how bad guests and bad hosts end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import NagayaError, NotFoundError, SpecError
from nagaya.paths import Paths
from nagaya.resources.cgroups import Cgroup
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.netns import Namespace
from nagaya.testing.payload import build
from nagaya.testing.processes import end
from nagaya.testing.scratch import make_directory
from nagaya.testing.yard import pss_kib

pytestmark = [pytest.mark.root, pytest.mark.kvm]

GUEST = Path(__file__).with_name("kvm_guest.c")
IDLE, END, TRIPLE_FAULT, BAD_INSTRUCTION, EXIT_STORM, PRINT, PANIC, RESET, LOOK, SPIN, BUTTON, ECHO = range(
    12
)

Start = Callable[..., Machine]


@pytest.fixture(scope="module")
def own_paths() -> Iterator[Paths]:
    """Directories of a Nagaya of its own; their paths are short."""
    top = make_directory()
    top.chmod(0o755)
    own = Paths(top / "r", top / "s", top / "c")
    yield own
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def daemon(own_paths: Paths) -> Iterator[Client]:
    """A client of a daemon of its own; all its processes end with the tests.

    It is in a network namespace: the addresses of its guests are those of the demo's network, which may run.
    """
    with Namespace() as place, place.entered():
        ensure_daemon(own_paths)
        with Client(own_paths) as client:
            yield client
            host = client.host()
    for pid in (host.daemon_pid, host.plane_pid, host.zygote_pid):
        if pid is not None:
            end(pid, signal.SIGTERM)


@pytest.fixture
def client(daemon: Client) -> Iterator[Client]:
    """The same; no machine of a test is left for the next."""
    yield daemon
    ensure_daemon(daemon.paths)
    for machine in daemon.machines.list():
        machine.delete(force=True)


@pytest.fixture
def start(client: Client) -> Start:
    """Starts a machine whose guest does one thing."""

    def make(do: int, name: str = "toy", **fields: Any) -> Machine:
        boot = {"kernel": str(build("acts")), "cmdline": f"do={do}"}
        spec = {"name": name, "engine": "kvm", "memory": "64MiB", "boot": boot, **fields}
        return client.machines.create(spec, start=True)

    return make


def output(machine: Machine) -> str:
    """What the guest has printed so far."""
    return machine.logs().decode(errors="replace")


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Poll until it is so; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def ended(machine: Machine) -> tuple[str, str]:
    """State and cause, once the machine is down."""
    until(lambda: machine.refresh().info.state in ("stopped", "failed"))
    return machine.info.state, machine.info.cause


def test_a_guest_that_powers_off_is_stopped_without_a_cause(start: Start) -> None:
    machine = start(END)
    assert machine.info.engine == "kvm"
    assert ended(machine) == ("stopped", "")
    assert output(machine).splitlines() == ["READY", "EXIT 0"]


@pytest.mark.parametrize(
    ("do", "state", "causes"),
    [
        (TRIPLE_FAULT, "failed", ("the guest cannot go on: vCPU 0: triple fault at rip 0x",)),
        (
            BAD_INSTRUCTION,
            "failed",
            ("the guest cannot go on: vCPU 0: KVM cannot emulate 0f 58 0", "at rip 0x"),
        ),
        (PANIC, "failed", ("the guest's kernel panicked",)),
        (LOOK, "stopped", ("",)),
    ],
)
def test_how_a_guest_ends_is_told_with_its_cause(
    start: Start, do: int, state: str, causes: tuple[str, ...]
) -> None:
    machine = start(do)
    found, cause = ended(machine)
    assert found == state, cause
    assert all(part in cause for part in causes), cause
    assert output(machine).startswith("READY\n")


def test_a_guest_that_resets_itself_is_started_again(start: Start) -> None:
    machine = start(RESET)
    until(lambda: machine.refresh().info.restarts > 0)
    until(lambda: output(machine).count("READY") > 1)
    events = [entry.event for entry in machine.journal()]
    assert "ended: reboot" in events
    machine.kill()


def test_pause_resume_and_the_power_button(start: Start) -> None:
    machine = start(BUTTON)
    until(lambda: "READY" in output(machine))
    assert machine.pause().state == "paused"
    used = _cpu_ticks(machine)
    time.sleep(0.3)
    assert _cpu_ticks(machine) <= used + 1, "a paused guest uses no CPU"
    assert machine.resume().state == "running"
    assert machine.stop(20).state == "stopped"
    assert "PRESSED" in output(machine)


def test_bad_neighbours_hurt_no_other_machine(start: Start) -> None:
    """Exit storm, endless printing and a spinning CPU: each can be looked at, paused and killed meanwhile."""
    bad = [start(do, f"bad{do}", cpu={"weight": 10}) for do in (EXIT_STORM, PRINT, SPIN)]
    good = start(ECHO, "good")
    until(lambda: all("READY" in output(one) for one in (*bad, good)))
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(good.info.console_socket)
        console.settimeout(20)
        console.sendall(b"still here")
        heard = b""
        while b"still here" not in heard:
            heard += console.recv(100)
    for one in bad:
        assert one.pause().state == "paused"
        assert one.resume().state == "running"
        assert one.kill().state == "stopped"
    assert good.refresh().info.state == "running"


def test_a_guest_that_never_stops_printing_takes_no_memory(start: Start) -> None:
    """Nobody reads its console but the log, and that is capped (tests/unit/plane/test_hub.py)."""
    machine = start(PRINT)
    until(lambda: "line 10 " in output(machine))
    before = pss_kib(machine.info.pid or 0)
    time.sleep(2)
    assert pss_kib(machine.info.pid or 0) < before + 1024
    machine.kill()


def test_a_machine_whose_process_is_killed_fails_alone(start: Start) -> None:
    first, second = start(IDLE, "first"), start(IDLE, "second")
    assert first.info.pid
    os.kill(first.info.pid, signal.SIGKILL)
    assert ended(first) == ("failed", "its process was killed from outside: SIGKILL, not sent by Nagaya")
    assert second.refresh().info.state == "running"


def test_cpu_time_is_set_live_and_known_to_the_next_daemon(client: Client, start: Start) -> None:
    cpu = min(os.sched_getaffinity(0))
    db, heavy = (start(SPIN, name, cpu={"pin": str(cpu), "weight": 100}) for name in ("db", "heavy"))

    def group(one: Machine) -> Cgroup:
        found = Cgroup.load(client.paths.machine(one.id).run / "cgroups.json")
        assert found is not None
        return found

    def weight(one: Machine) -> float:
        cpu_group = group(one).groups["cpu"]
        shares = cpu_group / "cpu.shares"  # v1: 1024 for a weight of 100
        text = shares if shares.exists() else cpu_group / "cpu.weight"
        return int(text.read_text()) / (10.24 if shares.exists() else 1)

    assert (weight(db), weight(heavy)) == (100, 100)
    db.set({"cpu.reservation": 0.75})
    assert weight(db) == pytest.approx(300, rel=0.01)
    assert os.sched_getaffinity(db.info.pid or 0) == {cpu}
    end(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    until(lambda: heavy.refresh().info.state == "running")
    heavy.set({"cpu.weight": 200})
    assert weight(db) == pytest.approx(600, rel=0.01)
    heavy.set({"cpu.pin": None})
    assert os.sched_getaffinity(heavy.info.pid or 0) == os.sched_getaffinity(0)
    heavy.kill()
    until(lambda: weight(db) == pytest.approx(100, rel=0.01))


def test_a_daemon_that_is_killed_adopts_its_machines(client: Client, start: Start) -> None:
    running, paused = start(IDLE, "running"), start(IDLE, "paused")
    paused.pause()
    end(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    until(lambda: paused.refresh().info.state == "paused")
    assert running.refresh().info.state == "running"
    assert paused.resume().state == "running"


def test_a_kernel_that_is_none_says_what_it_is(client: Client, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    wrong = tmp_path / "kernel"
    wrong.write_text("#!/bin/sh\n")
    wrong.chmod(0o644)
    boot = {"kernel": str(wrong)}
    machine = client.machines.create({"name": "wrong", "engine": "kvm", "memory": "64MiB", "boot": boot})
    with pytest.raises(SpecError, match="script"):
        machine.start()
    assert ended(machine)[0] == "failed"
    assert "script" in machine.info.cause


def test_without_a_kernel_of_ours_the_answer_says_how_to_build_one(client: Client) -> None:
    with pytest.raises(NotFoundError, match="nagaya kernel build kvm"):
        client.machines.create({"name": "none", "engine": "kvm", "memory": "64MiB"}, start=True)


def test_a_plane_that_is_gone_ends_its_machines_with_the_cause(client: Client, start: Start) -> None:
    machine = start(IDLE, disks=({"size": "16MiB"},))
    plane = client.host().plane_pid
    assert plane
    end(plane, signal.SIGKILL)
    assert ended(machine) == ("failed", "the plane ended, and the machine's devices with it")
    assert start(END, "after").info.engine == "kvm"


def _cpu_ticks(machine: Machine) -> int:
    """User and system time of all threads (proc(5), stat)."""
    words = Path(f"/proc/{machine.refresh().info.pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def test_a_disk_is_closed_under_a_machine_that_runs_on(
    client: Client, start: Start, own_paths: Paths
) -> None:
    """`nagaya lease transfer --detach`: the device asks its driver for a reset, the machine has the rest."""
    image = own_paths.state / "data.img"
    image.write_bytes(bytes(2**20))
    disks = [{"size": "1MiB"}, {"path": str(image)}]
    holder = start(ECHO, "holder", disks=disks)
    client.machines.create({"name": "heir", "memory": "64MiB", "disks": disks})
    until(lambda: "READY" in output(holder))
    client.leases.transfer(str(image), "heir", way="detach")
    assert [(one.machine, one.state) for one in client.leases.list(str(image))] == [
        ("holder", "closed"),
        ("heir", "reserved"),
    ]
    with socket.socket(socket.AF_UNIX) as console:
        console.connect(holder.info.console_socket)
        console.settimeout(20)
        console.sendall(b"still here")
        heard = b""
        while b"still here" not in heard:
            heard += console.recv(100)
    end(client.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(client.paths)
    assert holder.refresh().info.state == "running"
    assert holder.pause().resume().state == "running"


def test_a_disk_that_a_daemon_died_over_is_taken_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.disks.create("data", "1MiB")
    guest = build(Path(__file__).parents[1] / "guest" / "disk_hotplug.c")
    boot = {"kernel": str(guest), "cmdline": "disks=1"}
    machine = client.machines.create(
        {"name": "toy", "engine": "kvm", "memory": "64MiB", "boot": boot}, start=True
    )
    until(lambda: "LISTENING" in output(machine))
    end(client.host().daemon_pid, signal.SIGTERM)
    monkeypatch.setenv("NAGAYA_FAILPOINT", "attach:plugged")
    ensure_daemon(client.paths)
    with pytest.raises(NagayaError):
        client.disks.attach("toy", "data")
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    ensure_daemon(client.paths)
    until(lambda: output(machine).split()[-3:] == ["UNPLUGGED", "EXIT", "0"])
    until(lambda: machine.refresh().info.spec["disks"] == [])
    until(lambda: client.disks.get("data").state == "free")
    client.disks.delete("data")


def test_a_running_machine_gets_a_disk_and_gives_it_back(client: Client) -> None:
    client.disks.create("data", "1MiB")
    guest = build(Path(__file__).parents[1] / "guest" / "disk_hotplug.c")
    boot = {"kernel": str(guest), "cmdline": "disks=1"}
    spec = {"name": "toy", "engine": "kvm", "memory": "64MiB", "boot": boot}
    machine = client.machines.create(spec, start=True)
    until(lambda: "LISTENING" in output(machine))
    client.disks.attach("toy", "data")
    assert [disk["disk"] for disk in machine.refresh().info.spec["disks"]] == ["data"]
    until(lambda: "\nPLUGGED" in output(machine))  # it has written all of it and read it back
    assert client.disks.resize("data", "2MiB").size == 2**21
    assert client.disks.get("data").allocated > 2**20
    client.disks.detach("toy", "data")
    until(lambda: output(machine).split()[-3:] == ["UNPLUGGED", "EXIT", "0"])
    assert machine.refresh().info.spec["disks"] == []
    assert client.disks.get("data").state == "free"
    client.disks.delete("data")


@pytest.fixture
def yard(client: Client, start: Start) -> Iterator[Machine]:
    """A machine that takes NICs on the network `yard`, where 10.77.0.3 answers."""
    client.networks.create(
        {"name": "yard", "mode": "isolated", "ipv4": "10.77.0.0/24", "dhcp": False, "dns": False}
    )
    net = {"boot": {"kernel": str(build("net")), "cmdline": "ip=3"}}
    start(IDLE, "peer", nics=[{"network": "yard", "ipv4": "10.77.0.3"}], **net)
    guest = build(Path(__file__).parents[1] / "guest" / "nic_hotplug.c")
    toy = start(IDLE, boot={"kernel": str(guest), "cmdline": "nics=2"}, nics=[])
    until(lambda: "LISTENING" in output(toy))
    yield toy
    ensure_daemon(client.paths)
    for machine in client.machines.list():
        machine.delete(force=True)
    client.networks.delete("yard")


def test_a_running_machine_gets_a_nic_and_gives_it_back(client: Client, yard: Machine) -> None:
    def times(word: str, count: int) -> None:
        until(lambda: output(yard).count(word) == count)

    for number in (1, 2):
        info = client.networks.connect("toy", "yard", ipv4="10.77.0.2", share={"weight": 200})
        assert [(nic["name"], nic["ipv4"]) for nic in info.nics] == [("net0", "10.77.0.2")]
        times("\nPLUGGED", number)  # it has pinged
        [port] = client.networks.ports_of("toy")
        assert (port.connected, port.rx_packets >= 20, sum(port.drops.values())) == (True, True, 0)
        assert client.networks.disconnect("toy", "yard").nics == []
        times("UNPLUGGED", number)
        assert client.networks.ports_of("toy") == []
    until(lambda: output(yard).split()[-2:] == ["EXIT", "0"])


def test_a_nic_that_the_machine_started_with_stays(client: Client, yard: Machine) -> None:
    with pytest.raises(NagayaError, match="net0 is on the root bus, where nothing can be unplugged"):
        client.networks.disconnect("peer", "net0")
    assert client.machines.get("peer").info.nics[0]["ipv4"] == "10.77.0.3"
    assert client.networks.ports_of("peer")[0].connected


@pytest.mark.parametrize("step", ["connect:plugged", "disconnect:recorded"])
def test_a_nic_that_a_daemon_died_over_is_taken_back(
    client: Client, yard: Machine, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    if step.startswith("disconnect"):
        client.networks.connect("toy", "yard", ipv4="10.77.0.2")
        until(lambda: "\nPLUGGED" in output(yard))
    end(client.host().daemon_pid, signal.SIGTERM)
    monkeypatch.setenv("NAGAYA_FAILPOINT", step)
    ensure_daemon(client.paths)
    with pytest.raises(NagayaError):
        if step.startswith("connect"):
            client.networks.connect("toy", "yard", ipv4="10.77.0.2")
        else:
            client.networks.disconnect("toy", "net0")
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    ensure_daemon(client.paths)
    until(lambda: "UNPLUGGED" in output(yard))
    until(lambda: client.networks.ports_of("toy") == [])
    assert yard.refresh().info.nics == []
    assert [one.machine for one in client.networks.get("yard").addresses] == ["peer"]
    client.networks.connect("toy", "yard", ipv4="10.77.0.2")
    until(lambda: output(yard).count("\nPLUGGED") == 2)


def test_memory_of_a_machine_that_runs_grows_and_shrinks(
    client: Client, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    mem = {"kernel": str(build("mem")), "cmdline": "stay=1"}
    toy = start(IDLE, memory={"size": "64MiB", "max": "128MiB"}, boot=mem)
    until(lambda: "PLUGGED 0\n" in output(toy))
    toy.set([("memory.size", "96MiB")])
    until(lambda: "PLUGGED 32\n" in output(toy))  # and it has written to all of it
    for wrong, words in (("32MiB", "started with 64 MiB"), ("97MiB", r"whole blocks of 2\.0 MiB")):
        with pytest.raises(NagayaError, match=words):
            toy.set([("memory.size", wrong)])
    limits = [_memory_limit(toy)]
    toy.set([("memory.size", "70MiB")])
    until(lambda: "PLUGGED 6\n" in output(toy))
    until(lambda: _memory_limit(toy) == limits[0] - 26 * 2**20)
    end(client.host().daemon_pid, signal.SIGTERM)
    monkeypatch.setenv("NAGAYA_FAILPOINT", "set:recorded")
    ensure_daemon(client.paths)
    with pytest.raises(NagayaError):
        toy.set([("memory.size", "128MiB")])
    monkeypatch.delenv("NAGAYA_FAILPOINT")
    ensure_daemon(client.paths)
    until(lambda: "PLUGGED 64\n" in output(toy))
    assert toy.refresh().info.memory == 128 * 2**20


def _memory_limit(machine: Machine) -> int:
    """Bytes that its control group may have."""
    group = Cgroup.load(Path(machine.info.console_socket).with_name("cgroups.json"))
    assert group is not None
    names = (group.groups["memory"] / name for name in ("memory.limit_in_bytes", "memory.max"))
    return int(next(name for name in names if name.exists()).read_text())
