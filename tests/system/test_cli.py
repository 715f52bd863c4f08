"""The command line against the real daemon, plane, engine and BusyBox guest, on a real terminal."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.uml,
    pytest.mark.images,
    pytest.mark.usefixtures("uml_kernel", "busybox_image"),
]


Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Spawn = Callable[..., "pexpect.spawn[bytes]"]


def test_run_is_the_guests_command(cli: Cli) -> None:
    done = cli(
        "run", "busybox", "--memory", "64MiB", "--", "sh", "-c", "cat; echo oops >&2; exit 7", stdin="hello"
    )
    assert (done.returncode, done.stdout) == (7, "hello")
    assert done.stderr.endswith("oops\n")
    assert cli("list", "-q").stdout == ""


def test_exec_speaks_with_a_guest_that_has_just_been_started(cli: Cli) -> None:
    assert cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start").returncode == 0
    done = cli("exec", "-e", "GREETING=hi", "b1", "--", "sh", "-c", 'echo "$GREETING from $(hostname)"')
    assert (done.returncode, done.stdout) == (0, "hi from b1\n")
    assert cli("exec", "b1", "--", "no-such-program").returncode == 127


def test_console_logs_in_and_detaches(cli: Cli, spawn: Spawn) -> None:
    cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start")
    console = spawn("console", "b1")
    console.expect("ctrl-] detaches")
    console.send("\r")
    console.expect("# ")
    console.send("echo is $((40 + 2))\r")
    console.expect("is 42")
    console.send("\x03\x1d")
    console.expect("Detached from b1")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    assert cli("list", "--state", "running", "-q").stdout == "b1\n"
    assert "is 42" in cli("logs", "b1").stdout


def test_the_console_ends_with_the_machine(cli: Cli, spawn: Spawn) -> None:
    cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start")
    console = spawn("console", "b1")
    console.expect("ctrl-] detaches")
    console.send("\r")
    console.expect("# ")
    console.send("poweroff\r")
    console.expect("The console of b1 closed")
    console.expect(pexpect.EOF)
    console.close()
    assert console.exitstatus == 0
    _until(lambda: cli("list", "--state", "stopped", "-q").stdout == "b1\n")


def test_the_console_survives_the_daemon_in_good_order(cli: Cli, spawn: Spawn) -> None:
    cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start")
    console = spawn("console", "b1")
    console.expect("ctrl-] detaches")
    os.kill(_daemon_pid(cli), 9)
    console.expect("The console of b1 closed")
    console.expect(pexpect.EOF)
    assert b"Traceback" not in (console.before or b"")
    console.close()
    assert cli("list", "--state", "running", "-q").stdout == "b1\n"


def test_a_killed_daemon_is_replaced_by_the_next_command(cli: Cli, environment: dict[str, str]) -> None:
    cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start")
    before = cli("show", "b1", "--format", "json").stdout
    pid = _daemon_pid(cli)
    os.kill(pid, 9)
    _until(lambda: not Path(f"/proc/{pid}").exists())
    assert cli("exec", "b1", "--", "true").returncode == 0
    assert _daemon_pid(cli) != pid
    assert (
        cli("show", "b1", "--format", "json").stdout.split('"pid"')[1][:10] == before.split('"pid"')[1][:10]
    )


def test_stop_start_and_logs(cli: Cli) -> None:
    cli("create", "busybox", "--name", "b1", "--memory", "64MiB", "--start")
    assert cli("exec", "b1", "--", "sh", "-c", "echo kept > /kept; sync").returncode == 0
    assert cli("stop", "b1").stdout == "b1 is stopped\n"
    assert cli("start", "b1", "--wait").stdout == "b1 is ready\n"
    assert cli("exec", "b1", "--", "cat", "/kept").stdout == "kept\n"
    assert "nagaya: init started" in cli("logs", "b1").stdout


def _daemon_pid(cli: Cli) -> int:
    return int(json.loads(cli("daemon", "status", "--format", "json").stdout)["daemon_pid"])


def _until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.1)
