"""What `top` and Prometheus are told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from nagaya.daemon import metrics
from nagaya.daemon.daemon import Daemon
from nagaya.daemon.usage import usage
from nagaya.models.memory import MachineMemoryInfo, MemoryAnswer
from nagaya.models.pressure import AlarmInfo, HostPressureInfo, PressureInfo, StallInfo
from nagaya.models.usage import (
    ArbiterUsage,
    BalloonUsage,
    DiskUsage,
    MachineUsage,
    NicUsage,
    UplinkUsage,
    UsageAnswer,
)
from nagaya.models.waits import WaitInfo
from nagaya.spec import MachineSpec
from nagaya.testing import Stage, fake_parts

DISK = DiskUsage("disk0", 7, 8, 2, 1, 28672, 32768, 0, 3, 1, 1500)
NIC = NicUsage("net0", "back", True, 10, 1000, 20, 3000, {"storm": 7, "spoofed": 0}, 5)
UPLINK = UplinkUsage("back", 125_000_000, 20, 3000, 10, 1000, {"storm": 1}, 5)
HELD = PressureInfo(2_500_000, 1_000_000, 500_000, None, 7, 3, 4096)
BALLOON = BalloonUsage(32 << 20, 30 << 20, 7 << 20, 50 << 20)
DB = MachineUsage(
    "0a", "db", "running", 100, 2_500_000, 64 << 20, 128 << 20, "missed", [DISK], [NIC], HELD, BALLOON
)
WEB = MachineUsage("0b", "web", "stopped", 100, None, None, 64 << 20, "none", [])
ARBITER = ArbiterUsage("disk-8:0", 16, 2000, 3, 1, 20000, 400 << 20)
LINK = ArbiterUsage("net-back", 0, 0, 0, 5, 0, 125_000_000, "network")
WAIT = WaitInfo("db/disk0", "machine", "web/disk0", 1_250_000, 12)
CPU_WAIT = WaitInfo("db", "machine", "%host", 750_000, 0, "cpu")
ALARM = AlarmInfo("memory stalls", "some work waited", "stop one")
HOST = HostPressureInfo(StallInfo(9_000_000, 0, 0.3, 0), None, None, 2_000_000, 1, 2, 3, 5 << 20, [ALARM])
IN_NEED = MachineMemoryInfo(
    "db", 512, 0, None, 100, 300, 256, 128, 0, 5, 300, 400, "its guest swaps", driver=True, refuses=False
)
MEMORY = MemoryAnswer(True, 1000, 40, 60, 0, True, [IN_NEED], [], {"take": 7})
NOW = UsageAnswer(1.0, 60, [DB, WEB], [ARBITER, LINK], [WAIT, CPU_WAIT], [UPLINK], HOST)


LABELS = (
    "move",
    "resource",
    "work",
    "alarm",
    "machine",
    "disk",
    "nic",
    "network",
    "reason",
    "state",
    "worker",
    "waiter",
    "cause",
    "whom",
)


def samples(answer: UsageAnswer) -> dict[tuple[str, ...], float]:
    """All samples by name and label values, read back by Prometheus' own parser."""
    found = {}
    for family in text_string_to_metric_families(metrics.render(answer, MEMORY).decode()):
        for sample in family.samples:
            values = [sample.labels[label] for label in LABELS if label in sample.labels]
            found[sample.name, *values] = sample.value
    return found


def test_prometheus_reads_machines_disks_arbiters_and_waits() -> None:
    found = samples(NOW)
    expected: dict[tuple[str, ...], float] = {
        ("nagaya_machine_state", "db", "running"): 1,
        ("nagaya_machine_state", "db", "paused"): 0,
        ("nagaya_machine_cpu_seconds_total", "db"): 2.5,
        ("nagaya_machine_memory_bytes", "db"): 64 << 20,
        ("nagaya_machine_memory_size_bytes", "web"): 64 << 20,
        ("nagaya_memory_budget_bytes",): 1000,
        ("nagaya_memory_short",): 1,
        ("nagaya_memory_moved_bytes_total", "take"): 7,
        ("nagaya_machine_memory_actual_bytes", "db"): 128,
        ("nagaya_machine_memory_need", "db"): 1,
        ("nagaya_machine_latency_objective_met", "db"): 0,
        ("nagaya_machine_cpu_wait_seconds_total", "db"): 2.5,
        ("nagaya_machine_cpu_throttled_seconds_total", "db"): 1,
        ("nagaya_machine_memory_stall_seconds_total", "db"): 0.5,
        ("nagaya_machine_major_faults_total", "db"): 7,
        ("nagaya_machine_memory_limit_hits_total", "db"): 3,
        ("nagaya_machine_swap_bytes", "db"): 4096,
        ("nagaya_machine_balloon_size_bytes", "db"): 32 << 20,
        ("nagaya_machine_balloon_bytes", "db"): 30 << 20,
        ("nagaya_machine_reported_bytes_total", "db"): 7 << 20,
        ("nagaya_machine_available_bytes", "db"): 50 << 20,
        ("nagaya_host_stall_seconds_total", "cpu", "some"): 9,
        ("nagaya_host_steal_seconds_total",): 2,
        ("nagaya_host_memory_available_bytes",): 5 << 20,
        ("nagaya_host_alarm", "memory stalls"): 1,
        ("nagaya_host_alarm", "memory short"): 0,
        ("nagaya_cpu_wait_seconds", "db", "machine", "%host"): 0.75,
        ("nagaya_disk_reads_total", "db", "disk0"): 7,
        ("nagaya_disk_written_bytes_total", "db", "disk0"): 32768,
        ("nagaya_disk_in_flight_requests", "db", "disk0"): 3,
        ("nagaya_disk_latency_p99_seconds", "db", "disk0"): 0.0015,
        ("nagaya_network_receive_bytes_total", "db", "net0", "back"): 1000,
        ("nagaya_network_transmit_packets_total", "db", "net0", "back"): 20,
        ("nagaya_network_drops_total", "db", "net0", "back", "storm"): 7,
        ("nagaya_network_link_up", "db", "net0", "back"): 1,
        ("nagaya_network_waiting_frames", "db", "net0", "back"): 5,
        ("nagaya_uplink_transmit_bytes_total", "back"): 1000,
        ("nagaya_uplink_drops_total", "back", "storm"): 1,
        ("nagaya_uplink_rate_bytes_per_second", "back"): 125_000_000,
        ("nagaya_arbiter_window_requests", "disk-8:0"): 16,
        ("nagaya_arbiter_capacity_iops", "disk-8:0"): 20000,
        ("nagaya_disk_wait_seconds", "db/disk0", "machine", "web/disk0"): 1.25,
    }
    assert {key: found[key] for key in expected} == expected
    assert ("nagaya_arbiter_window_requests", "net-back") not in found, "a network has no window"
    assert ("nagaya_machine_memory_bytes", "web") not in found, "what is unknown is left out"
    assert ("nagaya_machine_balloon_bytes", "web") not in found, "it does not run"
    assert ("nagaya_machine_latency_objective_met", "web") not in found


def test_waits_at_disks_and_at_networks_are_not_added_up() -> None:
    rows = [
        WaitInfo("db/disk0", "limit", "", 1_000_000, 1),
        WaitInfo("db/net0", "machine", "web/net0", 2_000_000, 9, "network"),
        WaitInfo("db", "machine", "others", 500_000, 1),
        WaitInfo("db", "machine", "others", 250_000, 1, "network"),
    ]
    found = samples(replace(NOW, waits=rows))
    assert {key: value for key, value in found.items() if key[0].endswith("wait_seconds")} == {
        ("nagaya_disk_wait_seconds", "db/disk0", "limit", ""): 1,
        ("nagaya_disk_wait_seconds", "db", "machine", "others"): 0.5,
        ("nagaya_network_wait_seconds", "db/net0", "machine", "web/net0"): 2,
        ("nagaya_network_wait_seconds", "db", "machine", "others"): 0.25,
    }


def test_the_rows_of_waits_are_bounded() -> None:
    rows = [WaitInfo(f"m{n}", "machine", f"n{n}", 1_000_000, 1) for n in range(metrics.WAIT_ROWS + 50)]
    found = samples(replace(NOW, waits=rows))
    found = {key: value for key, value in found.items() if key[0] == "nagaya_disk_wait_seconds"}
    assert len(found) == metrics.WAIT_ROWS + 1
    assert found["nagaya_disk_wait_seconds", "others", "machine", "others"] == 50


def test_usage_is_of_all_machines_and_what_their_groups_count(stage: Stage) -> None:
    async def scene(daemon: Daemon) -> None:
        for name in ("db", "web"):
            parts = {"disks": [{"size": "1MiB"}], "nics": [{}]}
            spec = MachineSpec.model_validate({"name": name, "memory": "64MiB", **parts})
            await daemon.supervisor.create(spec)
        await daemon.supervisor.start("db")
        first = await usage(daemon.supervisor, 5)
        db, web = first.machines
        assert (db.name, db.state, db.cpu_us, db.memory, db.weight) == ("db", "running", 5, 9, 100)
        assert ([disk.name for disk in db.disks], web.disks) == (["disk0"], [])
        (nic,) = db.nics
        assert (nic.name, nic.network, nic.link, nic.tx_packets, nic.tx_bytes) == (
            *("net0", "default", True, 10),
            1000,
        )
        (uplink,) = first.uplinks
        assert (uplink.network, uplink.rx_bytes, uplink.tx_bytes) == ("default", 1000, 0), "what it sent"
        second = await usage(daemon.supervisor, 5)
        assert second.machines[0].disks[0].reads >= db.disks[0].reads
        assert second.at >= first.at

    stage.play(scene, replace(fake_parts(stage.paths), usage=lambda _machine: (5, 9)))


def test_the_daemon_imports_no_prometheus_before_somebody_asks() -> None:
    program = "import sys, nagaya.daemon.api.app; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
