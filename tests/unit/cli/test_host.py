"""`nagaya host` and starts that wait, against a daemon on fakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from nagaya.paths import Paths
from nagaya.sdk import Client

Invoke = Callable[..., Any]  # the fixture's: an Outcome


def test_the_host_is_shown_for_people_and_for_programs(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db", "--set", "cpu.reservation=0.5", "--start")
    table = invoke("host").out.splitlines()
    assert table[0].split() == ["RESOURCE", "TOTAL", "KEPT", "PROMISED", "LEFT", "USED", "OVERCOMMIT"]
    assert [line.split()[0] for line in table[1:3]] == ["cpu", "memory"]
    report = invoke("host", "--format", "json").json
    assert report["resources"][0]["promised"] == 0.5
    assert report["policy"]["memory"] == {"overcommit": "none", "kept": None}
    assert invoke("host", "--format", "csv").out.splitlines()[0].startswith("resource,name,unit,total")


def test_the_policy_is_set_and_taken_back(invoke: Invoke) -> None:
    changed = invoke("host", "set", "memory.overcommit=1.5", "--format", "json").json
    assert [(one["field"], one["after"]) for one in changed] == [("memory.overcommit", 1.5)]
    assert invoke("host", "set", "memory.overcommit=none").status == 0
    assert invoke("host", "set", "memory.overcommit=none").out == "the host has that already\n"
    assert invoke("host", "set", "memory.overcommit=lots").status == 2


def test_a_start_waits_for_room_and_says_what_for(invoke: Invoke, daemon_paths: Paths) -> None:
    total = next(one["total"] for one in invoke("host", "--format", "json").json["resources"][1:])
    half = f"{int(total * 0.6) // 2**20}MiB"
    for name in ("a", "b"):
        invoke("create", "busybox", "--name", name, "--memory", half)
    invoke("start", "a")
    refused = invoke("start", "b")
    assert refused.status == 6
    assert "nagaya start b --wait" in refused.err
    late = invoke("start", "b", "--queue", "--timeout", "0.1")
    assert late.status == 9
    assert "b was not started: it has waited long enough: b needs" in late.err

    def make_room() -> None:
        with Client(daemon_paths) as client:
            while not client.report().waiting:
                pass
            client.machines.get("a").kill()

    other = threading.Thread(target=make_room)
    other.start()
    assert invoke("start", "b", "--queue").out == "b runs\n"
    other.join()


def test_what_work_waits_for_is_said_below(invoke: Invoke) -> None:
    assert invoke("host").out.endswith("What work waits for is not known: nagaya doctor says why.\n")
    assert invoke("host", "--format", "json").json["pressure"]["alarms"] == []


def test_ctrl_c_gives_up_the_place(invoke: Invoke, daemon_paths: Paths) -> None:
    total = next(one["total"] for one in invoke("host", "--format", "json").json["resources"][1:])
    for name in ("a", "b"):
        invoke("create", "busybox", "--name", name, "--memory", f"{int(total * 0.6) // 2**20}MiB")
    invoke("start", "a")
    command = [sys.executable, "-m", "nagaya.cli", "start", "b", "--wait"]
    environment = {**os.environ, **daemon_paths.environment()}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    waiting = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with Client(daemon_paths) as client:
        while not client.report().waiting:
            pass
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=30)
        assert "b does not wait for room any more" in said
        assert waiting.returncode == 130
        assert client.report().waiting == []
