"""`nagaya plan`, against a daemon on fakes and the real simulator."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nagaya.daemon.demandstore import DemandStore
from nagaya.paths import Paths
from nagaya.resources.demand import HOUR, Sample
from nagaya.testing.plane import FakePlane

Invoke = Callable[..., Any]  # the fixture's: an Outcome


@pytest.fixture
def recorded(invoke: Invoke, daemon_paths: Paths) -> Iterator[Invoke]:
    """Machines `web` and `db`, of which an hour and their disks are known."""
    for name in ("web", "db"):
        invoke("create", "busybox", "--name", name, "--memory", "64MiB", "--start")
    ids = [row["id"] for row in invoke("list", "--format", "json").json]
    now = int(time.time()) // HOUR * HOUR
    store = DemandStore(daemon_paths.state / "demand.sqlite")
    store.add(now, {one: Sample(now, 10, 64 << 20, 900, 4 << 20, 1000, 2000) for one in ids})
    demand = asyncio.run(FakePlane(daemon_paths).demand(anew=True))
    store.add_patterns(now, demand, {"disk-0:0": (10_000, 0)})
    store.close()
    yield invoke


def test_it_says_how_many_fit_what_breaks_first_and_what_it_does_not_know(recorded: Invoke) -> None:
    out = recorded("plan", "--like", "web", "--most", "30").out
    first = out.splitlines()[0]
    assert "more like web fit" in first or "more like web fits" in first
    assert "RESOURCE" in out and "promised" in out
    assert "What this does not know:" in out
    assert "  What was not asked for while it was recorded is not foreseen" in out


def test_a_bound_on_latency_is_what_breaks(recorded: Invoke) -> None:
    answer = recorded("plan", "--like", "web", "--most", "30", "--p99", "500us", "--format", "json").json
    assert (answer["breaks"], 0 < answer["fits"] < 30) == ("disk disk-0:0", True)
    slow = [row for row in answer["rows"] if row["more"] == answer["fits"] + 1]
    assert slow[0]["worst_p99_us"] > slow[0]["worst_bound_us"] == 500
    assert (
        str(answer["fits"]) + "\n"
        == recorded("plan", "--like", "web", "--most", "30", "--p99", "500us", "-q").out
    )
    rows = recorded(
        "plan", "--like", "web", "--most", "30", "--p99", "500us", "--format", "csv"
    ).out.splitlines()
    assert rows[0].startswith("disk,more,iops,p99") and len(rows) == len(answer["rows"]) + 1
    assert rows[0].endswith(",note") and any("too slow" in row for row in rows)


def test_machines_are_packed(recorded: Invoke) -> None:
    answer = recorded("plan", "--consolidate", "--format", "json").json
    assert [group["machines"] for group in answer["groups"]] == [["db", "web"]]
    assert answer["rooms"]["iops"] == 10_000
    out = recorded("plan", "--consolidate").out
    assert out.startswith("2 machines fit 1 host like this one.\n") and "db web" in out


def test_one_question_at_a_time_about_a_machine_that_is_known(invoke: Invoke) -> None:
    assert invoke("plan").status == 2
    assert invoke("plan", "--like", "web", "--consolidate").status == 2
    assert invoke("plan", "--like", "nobody").status == 3
    invoke("create", "busybox", "--name", "young")
    outcome = invoke("plan", "--like", "young")
    assert "nothing has been recorded of young yet" in outcome.err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--most", "0"), ("--most", "-1"), ("--most", "many"), ("--most", "1001"),
        ("--p99", "0"), ("--p99", "-1ms"), ("--p99", "soon"), ("--p99", "10"),
    ],
)  # fmt: skip
def test_a_bound_that_makes_no_sense_is_refused(recorded: Invoke, wrong: tuple[str, str]) -> None:
    outcome = recorded("plan", "--like", "web", *wrong)
    assert outcome.status == 2 and wrong[0] in outcome.err


def test_a_machine_that_asked_for_nothing_fits_as_often_as_was_looked(
    invoke: Invoke, daemon_paths: Paths
) -> None:
    invoke("create", "busybox", "--name", "idle", "--memory", "64MiB")
    (row,) = invoke("list", "--format", "json").json
    store = DemandStore(daemon_paths.state / "demand.sqlite")
    store.add(int(time.time()) - HOUR, {row["id"]: Sample(int(time.time()) - HOUR, 0, 0, 0, 0, 0, 0)})
    store.close()
    answer = invoke("plan", "--like", "idle", "--most", "3", "--format", "json").json
    assert (answer["fits"], answer["breaks"], answer["rows"]) == (3, "", [])
    assert "Nothing has been recorded of its disks yet: they are left out." in answer["words"]


def test_a_device_of_which_nothing_is_known_is_left_out(recorded: Invoke, daemon_paths: Paths) -> None:
    with sqlite3.connect(daemon_paths.state / "demand.sqlite") as db:
        db.execute("UPDATE devices SET cells = '[]'")
    db.close()
    answer = recorded("plan", "--like", "web", "--format", "json").json
    assert answer["rows"] == [] and "they are left out" in answer["words"][-1]


def test_a_recording_that_cannot_be_replayed_says_why(recorded: Invoke, daemon_paths: Paths) -> None:
    with sqlite3.connect(daemon_paths.state / "demand.sqlite") as db:
        db.execute("UPDATE patterns SET pattern = json_set(pattern, '$.mix', json('[]'))")
    db.close()
    outcome = recorded("plan", "--like", "web")
    assert outcome.status != 0 and "has busy periods and no requests" in outcome.err


def test_without_any_recording_no_host_is_filled(invoke: Invoke) -> None:
    invoke("create", "busybox", "--name", "young")
    answer = invoke("plan", "--consolidate", "--format", "json").json
    assert (answer["groups"], answer["unknown"]) == ([], ["young"])
    assert "not recorded yet: young" in invoke("plan", "--consolidate").out
