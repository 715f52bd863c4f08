"""Captures, connections and faults of links, with guests on a network of a namespace."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nagaya.errors import ConflictError
from nagaya.paths import Paths
from nagaya.plane.client import PlaneClient
from nagaya.sdk import Client, Machine, ensure_daemon
from nagaya.testing.boxes import create, until

pytestmark = [pytest.mark.root, pytest.mark.uml, pytest.mark.images]
NETWORK = {"name": "back", "mode": "isolated", "ipv4": "10.9.0.0/24", "ipv6": "none"}


@pytest.fixture
def machines(inside: Client) -> tuple[Machine, Machine]:
    """`web` and `db`, which reach each other."""
    inside.networks.create(NETWORK)
    web, db = (
        create(inside, name, nics=[{"network": "back", "ipv4": f"10.9.0.{number}"}])
        for number, name in enumerate(("web", "db"), 10)
    )
    until(lambda: _pings(web, db))
    return web, db


def _pings(one: Machine, other: Machine, count: int = 1) -> str:
    """What ping says, "" if nothing came back."""
    address = other.info.nics[0]["ipv4"]
    done = one.exec(["ping", "-c", str(count), "-i", "0.1", "-W", "1", address])
    return "" if done.exit_code else done.stdout.decode()


def _capture(paths: Paths, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nagaya.cli", "network", "capture", "web", *options]
    environment = os.environ | paths.environment()
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _ping_on(one: Machine, other: Machine) -> None:
    """From now on, five times a second."""
    address = other.info.nics[0]["ipv4"]
    one.exec(["sh", "-c", f"ping -i 0.2 {address} > /dev/null 2>&1 &"])


def _kill_worker(paths: Paths) -> None:
    async def pid() -> int:
        async with await PlaneClient.connect(paths.plane_socket) as plane:
            return next(one.pid or 0 for one in await plane.query_workers() if one.name == "net-back")

    os.kill(asyncio.run(pid()), signal.SIGKILL)


def test_tcpdump_reads_the_pings_of_a_capture(
    inside: Client, machines: tuple[Machine, Machine], paths: Paths, tmp_path: Path
) -> None:
    web, db = machines
    file = tmp_path / "web.pcap"
    with _capture(paths, "-w", str(file)) as capture:
        until(lambda: file.exists() and file.stat().st_size >= 24)
        assert _pings(web, db, 5)
        capture.send_signal(signal.SIGINT)
        _, said = capture.communicate(timeout=20)
    assert capture.returncode == 0
    frames, missed = map(int, re.findall(r"\d+", said.decode().partition(":")[2]))
    shown = subprocess.run(
        ["tcpdump", "-n", "-r", str(file)], capture_output=True, text=True, check=True
    ).stdout
    assert len(shown.splitlines()) == frames and missed == 0, said
    assert shown.count("10.9.0.10 > 10.9.0.11: ICMP echo request") == 5
    assert shown.count("10.9.0.11 > 10.9.0.10: ICMP echo reply") == 5


def test_a_capture_goes_on_over_a_killed_worker_and_ends_with_its_reader(
    inside: Client, machines: tuple[Machine, Machine], paths: Paths
) -> None:
    _ping_on(*machines)
    with _capture(paths) as capture:
        tcpdump = ["tcpdump", "-n", "-l", "-c", "30", "-r", "-", "icmp"]
        with subprocess.Popen(tcpdump, stdin=capture.stdout, stdout=subprocess.PIPE) as reader:
            assert capture.stdout and reader.stdout
            capture.stdout.close()
            assert b"ICMP echo" in reader.stdout.readline()
            _kill_worker(paths)
            assert reader.stdout.read().count(b"ICMP echo") == 29
        assert capture.wait(20) == 141, "the reader of the output went away"
    until(lambda: not inside.networks.end_capture("web").running)
    pieces = inside.networks.capture("web")
    assert next(pieces), "the next one may begin"
    with pytest.raises(ConflictError, match="somebody captures web net0 already"):
        next(inside.networks.capture("web"))
    inside.machines.get("web").kill()
    assert all(pieces), "the machine's end ends it"


def test_who_comes_after_a_killed_daemon_may_capture_again(
    inside: Client, machines: tuple[Machine, Machine], paths: Paths
) -> None:
    _ping_on(*machines)
    pieces = inside.networks.capture("web")
    assert next(pieces)
    os.kill(inside.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(paths)
    again = inside.networks.capture("web", packets=2, snaplen=64)
    assert len(b"".join(again)) == 24 + 2 * (16 + 64)
    assert inside.networks.end_capture("web").packets == 2


def test_guests_feel_faults_across_killed_workers_and_daemons(
    inside: Client, machines: tuple[Machine, Machine], paths: Paths
) -> None:
    web, db = machines
    inside.networks.set_faults("web", delay_us=100_000)
    trips = [float(ms) for ms in re.findall(r"time=([0-9.]+)", _pings(web, db, 3))]
    assert len(trips) == 3 and all(trip >= 200 for trip in trips), "delayed there and back"
    inside.networks.set_faults("web", loss=1.0)
    assert not _pings(web, db)
    _kill_worker(paths)
    os.kill(inside.host().daemon_pid, signal.SIGKILL)
    ensure_daemon(paths)
    assert not _pings(web, db) and not _pings(web, db)
    until(lambda: inside.networks.faults("web"))
    [told] = inside.networks.faults("web")
    assert (told.nic, told.loss, told.dropped > 0) == ("net0", 1.0, True)
    assert inside.machines.get("web").info.cause == "faults on purpose on net0"
    inside.networks.set_faults("web")
    until(lambda: _pings(web, db))
    assert inside.networks.faults("web") == []


def test_a_partition_cuts_those_who_are_named_and_ends_with_the_run(
    inside: Client, machines: tuple[Machine, Machine]
) -> None:
    web, db = machines
    other = create(inside, "other", nics=[{"network": "back", "ipv4": "10.9.0.12"}])
    until(lambda: _pings(other, web) and _pings(other, db))
    inside.networks.set_faults("db", partition=["web"])
    assert not _pings(web, db) and not _pings(db, web)
    assert _pings(other, web) and _pings(other, db)
    assert inside.networks.faults("db")[0].partition == ["web/net0"]
    web.restart(hard=True).wait("agent", 60)
    assert not _pings(web, db), "it is on the link of db"
    db.restart(hard=True).wait("agent", 60)
    until(lambda: _pings(web, db))


def test_connections_of_a_machine_are_told(inside: Client, machines: tuple[Machine, Machine]) -> None:
    web, db = machines
    inside.networks.flows("web")
    assert _pings(web, db, 2)
    [flow] = [one for one in inside.networks.flows("web") if one.protocol == "icmp"]
    assert (flow.direction, flow.machine, flow.state) == ("out", "db", "open")
    assert (flow.tx_packets, flow.rx_packets) == (2, 2)
