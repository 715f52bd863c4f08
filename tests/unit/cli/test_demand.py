"""`nagaya demand`, against a daemon on fakes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nagaya.daemon.demandstore import DemandStore
from nagaya.paths import Paths
from nagaya.resources.demand import HOUR, Sample

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def recorded(invoke: Invoke, daemon_paths: Paths) -> Iterator[Invoke]:
    """A machine `web` of which two hours are known, each with two samples."""
    invoke("create", "busybox", "--name", "web", "--start")
    (row,) = invoke("list", "--format", "json").json
    hour = int(time.time()) // HOUR * HOUR
    store = DemandStore(daemon_paths.state / "demand.sqlite")
    for at, cpu in ((hour - HOUR, 500), (hour - HOUR + 10, 1500), (hour, 100), (hour + 10, 200)):
        store.add(at, {row["id"]: Sample(at, cpu, 64 << 20, 10, 40960, 1, 2)})
    store.close()
    yield invoke
    db = sqlite3.connect(daemon_paths.state / "demand.sqlite")
    with db:
        db.execute("DELETE FROM samples")
        db.execute("DELETE FROM hours")
    db.close()


def test_hours_are_rows(recorded: Invoke) -> None:
    lines = [line.split() for line in recorded("demand", "web").out.splitlines()]
    assert lines[0] == ["TIME", "CPU", "MEMORY", "IOPS", "DISK", "RECV", "SENT"]
    assert [line[2] for line in lines[1:]] == ["1.50", "0.20"]
    lines = [line.split() for line in recorded("demand", "web", "--percentile", "p50").out.splitlines()]
    assert [line[2] for line in lines[1:]] == ["0.50", "0.10"]


def test_samples_and_spans(recorded: Invoke) -> None:
    answer = recorded("demand", "web", "--samples", "--format", "json").json
    assert [one["cpu"] for one in answer["samples"]][-2:] == [100, 200]
    assert len(recorded("demand", "web", "--since", "30m", "--format", "json").json["hours"]) == 1
    assert recorded("demand", "web", "--format", "csv").out.startswith("time,cpu,")


def test_what_is_not_kept_is_refused(invoke: Invoke) -> None:
    assert invoke("demand", "web", "--since", "400h").status == 2
    assert invoke("demand", "nobody").status == 3
