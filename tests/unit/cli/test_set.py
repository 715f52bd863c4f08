"""`nagaya set` and `get`, against a daemon on fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nagaya.paths import Paths

Invoke = Callable[..., Any]  # the fixture's: an Outcome


def test_knobs_are_set_and_printed(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db", "--start")
    table = invoke("set", "db", "disk.weight=400", "disk.limit=50MiB/s", "disks[0].share.weight=50").out
    assert [line.split() for line in table.splitlines()] == [
        ["FIELD", "BEFORE", "AFTER", "EFFECT"],
        ["disks[0].share.weight", "100", "50", "now"],
        ["disk.limit", "none", "50MiB/s", "now"],
        ["disk.weight", "100", "400", "now"],
    ]
    assert invoke("get", "db", "disk.limit").out == "50MiB/s\n"
    assert ["disks[0].share.weight", "50"] in [line.split() for line in invoke("get", "db").out.splitlines()]
    assert invoke("set", "db", "disk.weight=400").out == "db has that already\n"
    assert invoke("set", "db", "disk.limit=none", "-q").out == ""
    assert invoke("get", "db", "disk.limit", "disk.weight", "--format", "json").json == [
        {"field": "disk.limit", "value": None},
        {"field": "disk.weight", "value": 400},
    ]


def test_what_a_running_machine_cannot_take_is_refused_with_the_way_to_do_it(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db", "--start")
    refused = invoke("set", "db", "memory.size=1GiB")
    assert refused.status == 4
    assert "nagaya stop db, set it, nagaya start db" in refused.err
    invoke("stop", "db")
    assert "at the next start" in invoke("set", "db", "memory.size=1GiB").out


def test_a_dry_run_says_what_would_change(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db")
    changes = invoke("set", "db", "disk.weight=7", "--dry-run", "--format", "json").json
    assert changes == [{"field": "disk.weight", "before": 100, "after": 7, "effect": "start"}]
    assert invoke("get", "db", "disk.weight").out == "100\n"


def test_a_reservation_that_does_not_fit_is_refused_with_the_arithmetic(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "web", "--set", "disk.reservation=9000iops", "--start")
    invoke("create", "busybox", "--name", "db", "--start")
    refused = invoke("set", "db", "disk.reservation=2000iops")
    assert refused.status == 6
    assert "10000iops as measured, 9000iops are promised (web 9000iops)" in refused.err


def test_tenants_have_knobs_too(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db", "--set", "tenant=acme", "--start")
    assert invoke("set", "@acme", "disk.weight=300").status == 0
    assert invoke("get", "@acme", "disk.weight").out == "300\n"
    assert invoke("set", "@acme", "disk.weight=none").status == 0
    assert invoke("set", "@acme", "cpu.weight=3").status == 2


def test_a_shell_completes_machines_tenants_and_knobs(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, daemon_paths: Paths
) -> None:
    invoke("create", "busybox", "--name", "db", "--set", "tenant=acme")
    monkeypatch.setenv("NAGAYA_RUN_DIR", str(daemon_paths.run))
    monkeypatch.setenv("NAGAYA_STATE_DIR", str(daemon_paths.state))
    monkeypatch.setenv("_NAGAYA_COMPLETE", "bash_complete")
    for words, found in (("set d", "db"), ("set @", "@acme"), ("set db disk.w", "disk.weight=")):
        monkeypatch.setenv("COMP_WORDS", f"nagaya {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
        assert [line.partition(",")[2] for line in invoke().out.splitlines()] == [found]


def test_what_is_no_setting_is_refused(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "db")
    for wrong in ("disk.weight", "disk.weight=heavy", "disk.wieght=5", "disks[4].share.weight=5"):
        assert invoke("set", "db", wrong).status == 2
    assert invoke("set", "db").status == 2
    assert invoke("get", "db", "nothing").status == 3
    assert invoke("set", "none", "disk.weight=5").status == 3
