"""`nagaya network capture|fault|flows` on a fake plane."""

from __future__ import annotations

import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def web(invoke: Invoke) -> Iterator[str]:
    """A machine that runs on the default network; no network is left."""
    invoke("create", "busybox", "--name", "web", "--start")
    yield "web"
    invoke("delete", "web", "--force", "--yes")
    invoke("network", "delete", "default")


def test_faults_of_a_link_are_set_shown_and_cleared(invoke: Invoke, web: str) -> None:
    faults = ("--loss", "5%", "--delay", "20ms", "--jitter", "500us", "--partition", "uplink")
    assert invoke("network", "fault", web, *faults).status == 0
    shown = invoke("network", "fault", web).out.splitlines()
    assert shown[0].split() == ["NIC", "FAULTS", "DROPPED"]
    assert shown[1].split(maxsplit=1)[1].split("  ")[0] == (
        "loss 5%, delay 20ms, jitter 500us, parted from uplink"
    )
    assert shown[1].split()[-1] == "3"
    assert "faults on purpose on net0" in invoke("list").out
    [row] = invoke("network", "fault", web, "--format", "json").json
    assert (row["loss"], row["delay_us"], row["partition"]) == (0.05, 20_000, ["uplink"])
    assert (
        invoke("network", "fault", web, "--partition", "all", "--duplicate", "1", "--reorder", "0.5").status
        == 0
    )
    assert "duplicate 100%, reorder 50%, parted from all" in invoke("network", "fault", web).out
    assert invoke("network", "fault", web, "--clear").status == 0
    assert invoke("network", "fault", web, "--format", "json").json == []
    assert invoke("network", "fault", web, "--clear", "--loss", "1").status == 2
    assert "'150%' is not between 0 and 1" in invoke("network", "fault", web, "--loss", "150%").err
    assert invoke("network", "fault", web, "--partition", "nobody").status == 3
    assert "must be at most 10000000" in invoke("network", "fault", web, "--delay", "11s").err


def test_connections_are_shown(invoke: Invoke, web: str) -> None:
    table = invoke("network", "flows", web).out.splitlines()
    assert table[0].split()[:4] == ["PROTOCOL", "LOCAL", "REMOTE", "MACHINE"]
    assert table[1].split()[:6] == ["tcp", "10.9.0.7:40000", "->", "10.9.0.2:443", "-", "open"]
    assert invoke("network", "flows", web, "--format", "json").json[0]["rx_bytes"] == 30_000
    assert invoke("network", "flows", web, "-q").out == "10.9.0.2\n"
    assert invoke("network", "flows", web, "--limit", "129").status == 2


def test_a_capture_ends_after_so_many_frames(invoke: Invoke, web: str, tmp_path: Path) -> None:
    file = tmp_path / "web.pcap"
    done = invoke("network", "capture", web, "-w", str(file), "-c", "2", "--snaplen", "96")
    assert (done.status, done.out, done.err) == (0, "", "web net0: 2 frames captured, 1 missed\n")
    assert (file.stat().st_size, stat.S_IMODE(file.stat().st_mode)) == (24 + 2 * 76, 0o600)
    done = invoke("network", "capture", web, "-w", str(file), "--limit", "110B", "-q")
    assert (done.status, done.err, file.stat().st_size) == (0, "", 24 + 76)
    assert invoke("network", "capture", web, "-w", str(tmp_path)).status == 2
    assert invoke("network", "capture", "nobody", "-w", str(file)).status == 3


def test_ctrl_c_ends_a_capture_and_what_was_captured_is_written(
    invoke: Invoke, web: str, tmp_path: Path
) -> None:
    file = tmp_path / "web.pcap"

    def interrupt() -> None:
        while not file.exists() or file.stat().st_size < 24:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    presser = threading.Thread(target=interrupt)
    presser.start()
    done = invoke("network", "capture", web, "-w", str(file))
    presser.join()
    assert (done.status, done.err) == (0, "web net0: 3 frames captured, 1 missed\n")
    assert file.stat().st_size == 24 + 3 * 76


def test_a_terminal_gets_no_frames(invoke: Invoke, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    refused = invoke("network", "capture", web)
    assert (refused.status, "| tcpdump -n -r -" in refused.err) == (2, True)
